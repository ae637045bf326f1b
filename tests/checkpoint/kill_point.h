// System calls that fail or kill on demand: this test program has its own rename, mkdir, rmdir,
// remove, unlink, unlinkat, fsync and fcntl, which the linker prefers to the C library's.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace phalanx {

/// How a child process came to its end.
struct ChildEnd {
  int signal = 0;  // 0: it was not killed
  int status = 0;  // 0: `work` returned; 1: it threw
};

/// Runs `work` in a forked child and waits for it. Exceptions are printed.
ChildEnd in_child(const std::function<void()>& work);

/// From now on the process is killed (SIGKILL) before its `number`-th (from 1) call that changes or
/// syncs names in a folder. 0: never.
void kill_before_change(int number);
/// The next rename to a path that ends with `suffix` fails with `code`.
void fail_rename(int code, std::string_view suffix);
/// Removing of files and folders fails with `code`; 0: it works.
void fail_removal(int code);
/// Locks of files fail with `code`; 0: they work.
void fail_locks(int code);

}  // namespace phalanx
