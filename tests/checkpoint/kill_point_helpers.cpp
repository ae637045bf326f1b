// The interposed system calls of kill_point.h.
#include "tests/checkpoint/kill_point.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <exception>
#include <utility>

namespace phalanx {
namespace {

std::atomic<int> changes_until_death{0};
int rename_code = 0;
std::string rename_suffix;
int removal_code = 0;
std::atomic<int> lock_code{0};

void before_change() {
  if (changes_until_death > 0 && --changes_until_death == 0) ::raise(SIGKILL);
}

int failed(int code) {
  errno = code;
  return -1;
}

int removed(int folder, const char* path, int flags) {
  before_change();
  if (removal_code != 0) return failed(removal_code);
  return static_cast<int>(::syscall(SYS_unlinkat, folder, path, flags));
}

}  // namespace

ChildEnd in_child(const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      work();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
      std::fflush(stderr);
      ::_exit(1);
    }
    ::_exit(0);  // without the destructors and buffers of the parent
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return {WIFSIGNALED(status) ? WTERMSIG(status) : 0, WIFEXITED(status) ? WEXITSTATUS(status) : 0};
}

void kill_before_change(int number) {
  changes_until_death = number;
}

void fail_rename(int code, std::string_view suffix) {
  rename_code = code;
  rename_suffix = suffix;
}

void fail_removal(int code) {
  removal_code = code;
}

void fail_locks(int code) {
  lock_code = code;
}

}  // namespace phalanx

extern "C" {

int rename(const char* from, const char* to) noexcept {
  phalanx::before_change();
  if (phalanx::rename_code != 0 && std::string_view(to).ends_with(phalanx::rename_suffix))
    return phalanx::failed(std::exchange(phalanx::rename_code, 0));
  return static_cast<int>(::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}

int mkdir(const char* path, mode_t mode) noexcept {
  phalanx::before_change();
  return static_cast<int>(::syscall(SYS_mkdirat, AT_FDCWD, path, mode));
}

int rmdir(const char* path) noexcept {
  return phalanx::removed(AT_FDCWD, path, AT_REMOVEDIR);
}

int unlink(const char* path) noexcept {
  return phalanx::removed(AT_FDCWD, path, 0);
}

int remove(const char* path) noexcept {
  struct stat info {};
  const bool is_folder = ::lstat(path, &info) == 0 && S_ISDIR(info.st_mode);
  return phalanx::removed(AT_FDCWD, path, is_folder ? AT_REMOVEDIR : 0);
}

int unlinkat(int folder, const char* path, int flags) noexcept {
  return phalanx::removed(folder, path, flags);
}

int fsync(int /*descriptor*/) {
  phalanx::before_change();
  return 0;  // because tests kill processes, not machines, and disks are slow
}

int fcntl(int descriptor, int command, ...) {
  va_list arguments;
  va_start(arguments, command);
  void* argument = va_arg(arguments, void*);
  va_end(arguments);
  if (command == F_OFD_SETLK && phalanx::lock_code != 0) return phalanx::failed(phalanx::lock_code);
  return static_cast<int>(::syscall(SYS_fcntl, descriptor, command, argument));
}

}  // extern "C"
