// Replaces operator new by one that counts. In a file of its own, because a compiler that sees both
// these and a caller takes them for mismatched.
#include "tests/data/allocation_helpers.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<int64_t> num_allocations{0};
}  // namespace

namespace phalanx {
int64_t count_allocations() {
  return num_allocations;
}
}  // namespace phalanx

void* operator new(size_t bytes) {
  ++num_allocations;
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}
