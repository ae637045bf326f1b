// POSIX files behind file_io.h.
#include "data/file_io.h"

#include <fmt/format.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <random>
#include <system_error>

#include "kernels/base/error.h"
#include "kernels/base/flight_recorder.h"
#include "kernels/base/log.h"

namespace phalanx {
namespace {

constexpr int64_t kBufferBytes = 1 << 20;

/// A file descriptor that closes itself.
class Descriptor {
 public:
  Descriptor(const std::string& path, int flags, mode_t mode = 0666)
      : value_(::open(path.c_str(), flags | O_CLOEXEC, mode)) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int value() const { return value_; }
  bool ok() const { return value_ >= 0; }

 private:
  int value_;
};

void sync_path(const std::string& path, int flags) {
  const Descriptor file(path, flags);
  check(file.ok(), "cannot open ", path, ": ", system_reason(errno));
  // EINVAL: some file systems cannot sync a folder; there is nothing more to be done then.
  check(::fsync(file.value()) == 0 || errno == EINVAL, "cannot sync ", path, ": ",
        system_reason(errno));
}

}  // namespace

std::string system_reason(int code) {
  return std::generic_category().message(code);
}

TemporaryFile::TemporaryFile(std::string target) : target_(std::move(target)) {
  // Random, because ranks on several nodes that share a folder may have equal process ids.
  std::random_device random;
  for (int attempt = 0; attempt < 100; ++attempt) {
    path_ = fmt::format("{}.tmp.{:08x}{:08x}", target_, random(), random());
    const Descriptor file(path_, O_WRONLY | O_CREAT | O_EXCL);
    if (file.ok()) return;
    const int code = errno;
    check_usage(code == EEXIST, "cannot write ", target_, ": ", system_reason(code),
                "; the folder must exist and be writable");
  }
  fail("cannot find a free temporary name for ", target_);
}

TemporaryFile::~TemporaryFile() {
  if (!published_ && ::unlink(path_.c_str()) != 0 && errno != ENOENT)
    log_info("cannot remove {}: {}", path_, system_reason(errno));
}

void TemporaryFile::sync() const {
  sync_path(path_, O_RDONLY);
}

void TemporaryFile::publish() {
  const FlightRange publishing(flight_entry(FlightKind::file, "completing", target_));
  sync();
  check(::rename(path_.c_str(), target_.c_str()) == 0, "cannot rename ", path_, " to ", target_,
        ": ", system_reason(errno));
  published_ = true;
  sync_folder(folder_of(target_));
}

FileWriter::FileWriter(const std::string& path)
    : path_(path), descriptor_(::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC)) {
  check(descriptor_ >= 0, "cannot open ", path, " for writing: ", system_reason(errno));
  buffer_.reserve(kBufferBytes);
}

FileWriter::~FileWriter() {
  ::close(descriptor_);
}

void FileWriter::write(const void* data, int64_t bytes) {
  const auto* from = static_cast<const char*>(data);
  if (static_cast<int64_t>(buffer_.size()) + bytes > kBufferBytes) flush();
  if (bytes >= kBufferBytes) {
    write_through(from, bytes);
  } else {
    buffer_.insert(buffer_.end(), from, from + bytes);
  }
}

void FileWriter::flush() {
  write_through(buffer_.data(), static_cast<int64_t>(buffer_.size()));
  buffer_.clear();
}

void FileWriter::write_through(const char* data, int64_t bytes) {
  while (bytes > 0) {
    const ssize_t written = ::write(descriptor_, data, static_cast<size_t>(bytes));
    if (written < 0 && errno == EINTR) continue;
    check(written >= 0, "cannot write to ", path_, ": ", system_reason(errno));
    data += written;
    bytes -= written;
  }
}

MappedFile::MappedFile(const std::string& path, Access access) {
  const bool write = access == Access::write;
  // O_NONBLOCK, because a pipe of that name would be waited for; files do not know it.
  const Descriptor file(path, (write ? O_RDWR : O_RDONLY) | O_NONBLOCK);
  check_usage(file.ok(), "cannot open ", path, ": ", system_reason(errno));
  struct stat info {};
  check(::fstat(file.value(), &info) == 0, "cannot stat ", path, ": ", system_reason(errno));
  check_usage(S_ISREG(info.st_mode), path, " is not a regular file");
  size_ = info.st_size;
  if (size_ == 0) return;  // an empty mapping is an error to mmap; an empty span is what we mean
  void* address = ::mmap(nullptr, static_cast<size_t>(size_),
                         write ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, file.value(), 0);
  check(address != MAP_FAILED, "cannot map ", path, " (", size_, " bytes): ", system_reason(errno));
  data_ = static_cast<std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, static_cast<size_t>(size_));
}

void MappedFile::expect_random_access() const {
  if (data_ != nullptr) ::madvise(data_, static_cast<size_t>(size_), MADV_RANDOM);
}

void reserve_file(const std::string& path, int64_t bytes) {
  const Descriptor file(path, O_RDWR);
  check(file.ok(), "cannot open ", path, ": ", system_reason(errno));
  int code = EINTR;
  while (code == EINTR) code = bytes == 0 ? 0 : ::posix_fallocate(file.value(), 0, bytes);
  check(code == 0, "cannot reserve ", bytes, " bytes for ", path, ": ", system_reason(code));
}

void reserve_file_if_cheap(const std::string& path, int64_t bytes) {
  const Descriptor file(path, O_RDWR);
  check(file.ok(), "cannot open ", path, ": ", system_reason(errno));
  int status = 0;
  do status = bytes == 0 ? 0 : ::fallocate(file.value(), 0, 0, bytes);
  while (status != 0 && errno == EINTR);
  check(status == 0 || errno == EOPNOTSUPP, "cannot reserve ", bytes, " bytes for ", path, ": ",
        system_reason(errno));
}

bool file_exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored);
}

int64_t file_bytes(const std::string& path) {
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);
  check_usage(!error, "cannot read ", path, ": ", error.message());
  return static_cast<int64_t>(bytes);
}

void make_folders(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  check_usage(!error, "cannot make the folder ", folder, ": ", error.message());
}

std::string read_file(const std::string& path) {
  const MappedFile file(path, MappedFile::Access::read);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

void write_file(const std::string& path, std::string_view text) {
  TemporaryFile file(path);
  FileWriter writer(file.path());
  writer.write(text.data(), static_cast<int64_t>(text.size()));
  writer.flush();
  file.publish();
}

void sync_folder(const std::string& folder) {
  sync_path(folder, O_RDONLY | O_DIRECTORY);
}

int64_t free_bytes(const std::string& path) {
  struct statvfs info {};
  int status = -1;
  do status = ::statvfs(path.c_str(), &info);
  while (status != 0 && errno == EINTR);
  check(status == 0, "cannot tell the free space of ", path, ": ", system_reason(errno));
  return static_cast<int64_t>(info.f_bavail * info.f_frsize);
}

std::string folder_of(const std::string& path) {
  const auto slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace phalanx
