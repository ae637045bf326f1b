// FileLock: one holder at a time of a lock file, over threads, processes and machines.
#pragma once

#include <chrono>
#include <string>

namespace phalanx {

/// Holds the POSIX record lock of `path` from construction to destruction; a process that dies
/// lets go of it. The file is made if need be and stays, empty.
class FileLock {
 public:
  /// Waits at most `patience`, then throws an Error that names the file. On a file system without
  /// locks it says so, once per process, and goes on without: what is guarded must then be checked
  /// in another way as well.
  explicit FileLock(const std::string& path,
                    std::chrono::milliseconds patience = std::chrono::seconds(60));
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int descriptor_;
};

}  // namespace phalanx
