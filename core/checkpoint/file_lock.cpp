// The lock file through open-file-description locks.
#include "core/checkpoint/file_lock.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>

#include "data/file_io.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// Tries once: 0, or errno. An open-file-description lock belongs to this opening of the file. A
/// classic record lock belongs to the process: two holders in one process would not exclude each
/// other, and closing any descriptor of the file would let go of it. Between processes and machines
/// both are the same lock.
int try_lock(int descriptor) {
  struct flock whole_file {};
  whole_file.l_type = F_WRLCK;
  whole_file.l_whence = SEEK_SET;
  return ::fcntl(descriptor, F_OFD_SETLK, &whole_file) == 0 ? 0 : errno;
}

/// ENOSYS: Lustre mounted without locks. EINVAL: a kernel without this kind of lock.
bool is_unsupported(int code) {
  return code == ENOLCK || code == EOPNOTSUPP || code == ENOSYS || code == EINVAL;
}

void say_unsupported(const std::string& path, int code) {
  static std::atomic<bool> said{false};
  if (said.exchange(true)) return;
  log_info(
      "WARNING: {} cannot be locked ({}). Two jobs that use this folder at the same moment are "
      "kept "
      "apart only by the epoch file, which leaves an instant between check and change. Mount the "
      "file system with locks (Lustre: -o flock)",
      path, system_reason(code));
}

/// 0, or why the lock was not had. Tries again and again, because waiting in the kernel
/// (F_OFD_SETLKW) has no time limit.
int lock_within(int descriptor, milliseconds patience) {
  const auto end = Clock::now() + patience;
  milliseconds pause{1};
  while (true) {
    const int code = try_lock(descriptor);
    const bool held = code == EAGAIN || code == EACCES || code == EINTR;
    if (!held || Clock::now() >= end) return code;
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, milliseconds(20));
  }
}

}  // namespace

FileLock::FileLock(const std::string& path, milliseconds patience)
    : descriptor_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
  check_usage(descriptor_ >= 0, "cannot open ", path, ": ", system_reason(errno),
              "; the folder must exist and be writable");
  const int code = lock_within(descriptor_, patience);
  if (is_unsupported(code)) say_unsupported(path, code);
  if (code == 0 || is_unsupported(code)) return;
  ::close(descriptor_);
  fail("cannot lock ", path, " within ", static_cast<double>(patience.count()) / 1000,
       " s: ", system_reason(code),
       "; another process, on this machine or another, holds it. End the other job that uses this "
       "folder, or find its process with lslocks");
}

FileLock::~FileLock() {
  ::close(descriptor_);  // lets go of the lock
}

}  // namespace phalanx
