// Files as this floor needs them: buffered writing, memory mapping, and atomic publication (a
// temporary name in the same folder, fsync, rename), so that no half file passes for a whole one.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx {

/// What the system says about `code`, an errno: "No space left on device".
std::string system_reason(int code);

/// A new empty file beside `target` under a name no other process uses. It vanishes with this
/// object unless `publish` was called. One thread at a time.
class TemporaryFile {
 public:
  /// Creates the file; throws with the folder's name when that is impossible.
  explicit TemporaryFile(std::string target);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }
  const std::string& target() const { return target_; }
  /// Makes the content durable. All writers must have flushed.
  void sync() const;
  /// Syncs, gives the file its final name and makes that durable too.
  void publish();

 private:
  std::string target_;
  std::string path_;
  bool published_ = false;
};

/// Appends bytes to an existing file through a buffer. Errors name the file and the reason.
class FileWriter {
 public:
  explicit FileWriter(const std::string& path);
  ~FileWriter();  // does not flush: what was not closed is not wanted
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  void write(const void* data, int64_t bytes);
  template <class T>
  void write_value(const T& value) {
    write(&value, sizeof(T));
  }
  void flush();

 private:
  void write_through(const char* data, int64_t bytes);
  std::string path_;
  int descriptor_;
  std::vector<char> buffer_;
};

/// A file read and written by position. Threads may use one object side by side. Errors name the
/// file and the reason.
class PositionalFile {
 public:
  enum class Access { read, write };  // write: also read
  PositionalFile(const std::string& path, Access access);
  ~PositionalFile();
  PositionalFile(PositionalFile&& other) noexcept;
  PositionalFile& operator=(PositionalFile&&) = delete;

  const std::string& path() const { return path_; }
  int64_t bytes() const;
  /// Throws Error if the file ends before.
  void read(int64_t position, void* target, int64_t bytes) const;
  void write(int64_t position, const void* source, int64_t bytes);
  /// Makes the content durable.
  void sync();
  /// Bytes handed out by `read` so far.
  int64_t bytes_read() const { return bytes_read_.load(std::memory_order_relaxed); }

 private:
  std::string path_;
  int descriptor_;
  mutable std::atomic<int64_t> bytes_read_{0};
};

/// A file in memory by mmap: shared by every process of a machine, paged in on demand.
class MappedFile {
 public:
  enum class Access { read, write };
  MappedFile(const std::string& path, Access access);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, static_cast<size_t>(size_)}; }
  /// Only with Access::write.
  std::byte* writable() { return data_; }
  /// Tells the kernel that pages will be wanted in no order, so that it does not read ahead.
  void expect_random_access() const;

 private:
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

/// Reserves `bytes` for an existing file. Because a mapped write to a full disk kills the process
/// with SIGBUS, while this throws.
void reserve_file(const std::string& path, int64_t bytes);
/// The same for a file that will be written by position, which can fail: does nothing on a file
/// system that cannot reserve (NFS before 4.2, older Lustre), because `reserve_file` writes to
/// every block there.
void reserve_file_if_cheap(const std::string& path, int64_t bytes);
bool file_exists(const std::string& path);
/// Size in bytes; throws UsageError when there is no readable regular file of that name.
int64_t file_bytes(const std::string& path);
void make_folders(const std::string& folder);
/// The whole of a small file.
std::string read_file(const std::string& path);
/// Gives `path` the content `text`: under a temporary name, durable, renamed.
void write_file(const std::string& path, std::string_view text);
/// Makes the names in a folder durable.
void sync_folder(const std::string& folder);
/// Bytes that an ordinary user may still write to the file system of `path`.
int64_t free_bytes(const std::string& path);
/// The part of `path` before its last '/', or ".".
std::string folder_of(const std::string& path);

}  // namespace phalanx
