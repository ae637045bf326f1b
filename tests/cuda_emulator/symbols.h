// What the program's symbol table tells: names of kernels, and where `__shared__` variables are.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace phalanx::emulator {

/// A `__shared__` variable, of which each host thread has its own copy.
struct SharedVariable {
  size_t module = 0;  // of the thread-local storage
  size_t offset = 0;
  size_t bytes = 0;
  void* address() const;  // the calling thread's
};

/// All of the program, found once.
const std::vector<SharedVariable>& shared_variables();

/// The name of the function at `address`, or the address.
std::string function_name(const void* address);

}  // namespace phalanx::emulator
