// Appending with write(2), and cutting off what was written of a record that did not fit.
#include "core/train/record_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/base/flight_recorder.h"

namespace phalanx {

RecordFile::RecordFile(const std::string& path)
    : path_(path),
      descriptor_(::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666)) {
  check(descriptor_ >= 0, "cannot write ", path, ": ", std::strerror(errno));
}

RecordFile::~RecordFile() {
  ::close(descriptor_);
}

bool RecordFile::append(std::string_view record) {
  const FlightRange writing(flight_entry(FlightKind::file, "writing", path_));
  struct stat before {};
  const bool known = ::fstat(descriptor_, &before) == 0;
  while (!record.empty()) {
    const ssize_t written = ::write(descriptor_, record.data(), record.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      // What cannot be cut off stays: of a device, or on a file system in trouble.
      [[maybe_unused]] const bool cut = known && ::ftruncate(descriptor_, before.st_size) == 0;
      return false;
    }
    record.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

}  // namespace phalanx
