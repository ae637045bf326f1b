// RecordFile: appends whole records to a file, or nothing of them.
#pragma once

#include <string>
#include <string_view>

namespace phalanx {

/// A file that others read while it grows. One thread.
class RecordFile {
 public:
  /// Opens or makes the file. Throws if that cannot be done.
  explicit RecordFile(const std::string& path);
  ~RecordFile();
  RecordFile(const RecordFile&) = delete;
  RecordFile& operator=(const RecordFile&) = delete;

  const std::string& path() const { return path_; }
  /// Hands the record to the system. False if there is no room for it: then the file is as before,
  /// because half a record would make those after it unreadable.
  bool append(std::string_view record);

 private:
  std::string path_;
  int descriptor_;
};

}  // namespace phalanx
