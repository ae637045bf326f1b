// PositionalFile of file_io.h: pread and pwrite until all bytes have moved.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "data/file_io.h"
#include "kernels/base/error.h"
#include "kernels/base/flight_recorder.h"

namespace phalanx {
PositionalFile::PositionalFile(const std::string& path, Access access)
    : path_(path),
      // O_NONBLOCK, because a pipe of that name would be waited for; files do not know it.
      descriptor_(::open(path.c_str(),
                         (access == Access::write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK)) {
  const char* purpose = access == Access::write ? " for writing: " : " for reading: ";
  check(descriptor_ >= 0, "cannot open ", path, purpose, system_reason(errno));
}

PositionalFile::PositionalFile(PositionalFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      bytes_read_(other.bytes_read()) {}

PositionalFile::~PositionalFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

int64_t PositionalFile::bytes() const {
  struct stat info {};
  check(::fstat(descriptor_, &info) == 0, "cannot stat ", path_, ": ", system_reason(errno));
  return info.st_size;
}

void PositionalFile::read(int64_t position, void* target, int64_t bytes) const {
  auto* to = static_cast<char*>(target);
  // A loop, because one call moves at most 2 GiB and a signal may end it early.
  for (int64_t done = 0; done < bytes;) {
    const ssize_t moved =
        ::pread(descriptor_, to + done, static_cast<size_t>(bytes - done), position + done);
    if (moved < 0 && errno == EINTR) continue;
    check(moved >= 0, "cannot read ", bytes, " bytes at ", position, " of ", path_, ": ",
          system_reason(errno));
    flight_progress();
    check(moved > 0, path_, " ends at byte ", position + done, "; ", bytes,
          " bytes were wanted at ", position);
    done += moved;
  }
  bytes_read_.fetch_add(bytes, std::memory_order_relaxed);
}

void PositionalFile::write(int64_t position, const void* source, int64_t bytes) {
  const auto* from = static_cast<const char*>(source);
  for (int64_t done = 0; done < bytes;) {
    const ssize_t moved =
        ::pwrite(descriptor_, from + done, static_cast<size_t>(bytes - done), position + done);
    if (moved < 0 && errno == EINTR) continue;
    check(moved >= 0, "cannot write ", bytes, " bytes at ", position, " of ", path_, ": ",
          system_reason(errno));
    flight_progress();
    done += moved;
  }
}

void PositionalFile::sync() {
  int status = -1;
  do status = ::fsync(descriptor_);
  while (status != 0 && errno == EINTR);
  check(status == 0, "cannot sync ", path_, ": ", system_reason(errno));
}

}  // namespace phalanx
