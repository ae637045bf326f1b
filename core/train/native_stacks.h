// The native stacks of all threads of this process, taken while they run or hang.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace phalanx {

struct ThreadStack {
  int64_t id = 0;
  std::string name;
  char state = '?';       // of /proc/self/task/ID/stat
  bool answered = false;  // a thread in the kernel, or one that takes no signals, does not
  std::vector<std::string> frames;  // the innermost first: "phalanx::Trainer::step() +0x1a4"
};

/// To be called once per process, by its main thread, before it matters: sets the signal handler
/// and gives this thread and OpenMP's of it stacks of their own for it, because matrix products of
/// oneDNN use memory below the stack pointer, which a handler there would overwrite.
void prepare_native_stacks();

/// All threads but the calling one, the main thread first. Waits no longer than `patience` for
/// their answers; names are looked up by the caller, outside the handler. One thread at a time.
std::vector<ThreadStack> native_stacks(std::chrono::milliseconds patience);

/// As lines for a file.
std::string stacks_text(const std::vector<ThreadStack>& stacks);

}  // namespace phalanx
