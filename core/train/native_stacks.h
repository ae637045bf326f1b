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

/// Sets the signal handler and gives the calling thread, which is to be the main one, a stack of
/// its own for it, because matrix products of oneDNN use memory below the stack pointer, which a
/// handler there would overwrite.
void prepare_native_stacks();
/// The same for the threads of OpenMP that the calling thread computes with. Once their number is
/// known.
void prepare_worker_stacks();

/// All threads but the calling one, the main thread first. Waits no longer than `patience` for
/// their answers; names are looked up by the caller, outside the handler. One thread at a time.
/// Empty before prepare_native_stacks.
std::vector<ThreadStack> native_stacks(std::chrono::milliseconds patience);

/// As lines for a file.
std::string stacks_text(const std::vector<ThreadStack>& stacks);

}  // namespace phalanx
