// Every form of operator new, counting. In a file of its own, because a compiler that sees both
// these and a caller takes malloc and operator delete for a mismatched pair; complete, because a
// form left to the library would be freed by ours.
#include "tests/allocation_count.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

std::atomic<int64_t> all_threads{0};
std::atomic<int64_t> all_bytes{0};
thread_local int64_t this_thread = 0;

void* counted(std::size_t bytes, std::size_t alignment) noexcept {
  ++all_threads;
  ++this_thread;
  all_bytes += static_cast<int64_t>(bytes);
  void* block = nullptr;
  const std::size_t least = std::max(alignment, sizeof(void*));
  return posix_memalign(&block, least, bytes) == 0 ? block : nullptr;
}

void* counted_or_throw(std::size_t bytes, std::size_t alignment) {
  void* block = counted(bytes, alignment);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

constexpr std::size_t kDefault = alignof(std::max_align_t);

}  // namespace

namespace phalanx {
int64_t count_allocations() {
  return all_threads;
}
int64_t count_allocations_of_this_thread() {
  return this_thread;
}
int64_t count_allocated_bytes() {
  return all_bytes;
}
}  // namespace phalanx

void* operator new(std::size_t bytes) {
  return counted_or_throw(bytes, kDefault);
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted_or_throw(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return counted(bytes, kDefault);
}
void* operator new(std::size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return counted(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* block) noexcept {
  std::free(block);
}
void operator delete(void* block, std::size_t) noexcept {
  std::free(block);
}
void operator delete(void* block, std::align_val_t) noexcept {
  std::free(block);
}
void operator delete(void* block, std::size_t, std::align_val_t) noexcept {
  std::free(block);
}
void operator delete(void* block, const std::nothrow_t&) noexcept {
  std::free(block);
}
void operator delete(void* block, std::align_val_t, const std::nothrow_t&) noexcept {
  std::free(block);
}
