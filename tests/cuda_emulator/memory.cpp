// Device and pinned memory: ordinary memory of the process, with its books kept per device.
#include "tests/cuda_emulator/memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "tests/cuda_emulator/counters.h"
#include "tests/cuda_emulator/runtime_state.h"

namespace phalanx::emulator {
namespace {

constexpr size_t kAlignment = 512;  // at least what cudaMalloc gives
constexpr int kPoison = 0xff;       // NaN as a float, -1 as a number

struct Allocation {
  size_t bytes = 0;
  cudaMemoryType type = cudaMemoryTypeUnregistered;
  int device = 0;
  bool registered = false;  // the program's own memory, pinned by cudaHostRegister
};

struct Books {
  std::mutex mutex;
  std::map<uintptr_t, Allocation> allocations;  // by start
  std::map<int, size_t> in_use;                 // by device
  std::map<int, size_t> peak;
};
Books& books() {
  static auto* all = new Books;
  return *all;
}

size_t capacity() {
  static const size_t bytes = [] {
    const char* text = std::getenv("EMULATED_GPU_MEMORY");
    return text != nullptr ? std::strtoull(text, nullptr, 10) : size_t{2} << 30;
  }();
  return bytes;
}

/// The allocation that `pointer` points into. The lock is held.
std::map<uintptr_t, Allocation>::iterator find(const void* pointer) {
  auto& all = books().allocations;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  auto found = all.upper_bound(address);
  if (found == all.begin()) return all.end();
  --found;
  return address < found->first + std::max<size_t>(found->second.bytes, 1) ? found : all.end();
}

cudaError_t allocate(void** pointer, size_t bytes, cudaMemoryType type) {
  if (pointer == nullptr) return cudaErrorInvalidValue;
  if (device_error() != cudaSuccess) return device_error();
  if (capture_forbids()) return cudaErrorStreamCaptureUnsupported;
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  const bool on_device = type == cudaMemoryTypeDevice;
  const std::lock_guard lock(books().mutex);
  size_t& in_use = books().in_use[current_device()];
  if (on_device && (bytes > capacity() || in_use > capacity() - bytes))
    return cudaErrorMemoryAllocation;
  *pointer = ::operator new(bytes, std::align_val_t(kAlignment), std::nothrow);
  if (*pointer == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*pointer, kPoison, bytes);
  books().allocations[reinterpret_cast<uintptr_t>(*pointer)] = {bytes, type, current_device()};
  if (!on_device) return cudaSuccess;
  in_use += bytes;
  size_t& peak = books().peak[current_device()];
  peak = std::max(peak, in_use);
  return cudaSuccess;
}

cudaError_t release(void* pointer, cudaMemoryType type) {
  if (pointer == nullptr) return cudaSuccess;
  if (capture_forbids()) return cudaErrorStreamCaptureUnsupported;
  ++counters().device_synchronisations;
  wait_for_device();
  const std::lock_guard lock(books().mutex);
  const auto found = books().allocations.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == books().allocations.end() || found->second.type != type || found->second.registered)
    return cudaErrorInvalidValue;
  if (type == cudaMemoryTypeDevice) books().in_use[found->second.device] -= found->second.bytes;
  books().allocations.erase(found);
  ::operator delete(pointer, std::align_val_t(kAlignment));
  return device_error();
}

}  // namespace

MemoryPlace place_of(const void* pointer) {
  const std::lock_guard lock(books().mutex);
  const auto found = find(pointer);
  if (found == books().allocations.end()) return {};
  const auto& [start, allocation] = *found;
  return {allocation.type, allocation.device,
          start + allocation.bytes - reinterpret_cast<uintptr_t>(pointer)};
}

bool is_device_range(const void* pointer, size_t bytes) {
  const MemoryPlace place = place_of(pointer);
  return place.type == cudaMemoryTypeDevice && bytes <= place.bytes_from_here;
}

int64_t device_bytes_in_use() {
  const std::lock_guard lock(books().mutex);
  return static_cast<int64_t>(books().in_use[current_device()]);
}

int64_t device_bytes_peak() {
  const std::lock_guard lock(books().mutex);
  return static_cast<int64_t>(books().peak[current_device()]);
}

}  // namespace phalanx::emulator

using namespace phalanx::emulator;  // NOLINT: the API below is C

cudaError_t cudaMalloc(void** devPtr, size_t size) {
  ++counters().device_allocations;
  return note(allocate(devPtr, size, cudaMemoryTypeDevice));
}

cudaError_t cudaFree(void* devPtr) {
  return note(release(devPtr, cudaMemoryTypeDevice));
}

cudaError_t cudaHostAlloc(void** pHost, size_t size, unsigned int) {
  ++counters().pinned_allocations;
  return note(allocate(pHost, size, cudaMemoryTypeHost));
}

cudaError_t cudaMallocHost(void** ptr, size_t size) {
  return cudaHostAlloc(ptr, size, 0);
}

cudaError_t cudaFreeHost(void* ptr) {
  return note(release(ptr, cudaMemoryTypeHost));
}

cudaError_t cudaHostRegister(void* ptr, size_t size, unsigned int) {
  if (ptr == nullptr || size == 0) return note(cudaErrorInvalidValue);
  if (capture_forbids()) return note(cudaErrorStreamCaptureUnsupported);
  const std::lock_guard lock(books().mutex);
  if (find(ptr) != books().allocations.end()) return note(cudaErrorHostMemoryAlreadyRegistered);
  books().allocations[reinterpret_cast<uintptr_t>(ptr)] = {size, cudaMemoryTypeHost,
                                                           current_device(), true};
  return cudaSuccess;
}

cudaError_t cudaHostUnregister(void* ptr) {
  wait_for_device();
  const std::lock_guard lock(books().mutex);
  const auto found = books().allocations.find(reinterpret_cast<uintptr_t>(ptr));
  if (found == books().allocations.end() || !found->second.registered)
    return note(cudaErrorHostMemoryNotRegistered);
  books().allocations.erase(found);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  if (free == nullptr || total == nullptr) return note(cudaErrorInvalidValue);
  *total = capacity();
  *free = capacity() - static_cast<size_t>(device_bytes_in_use());
  return note(device_error());
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* attributes, const void* ptr) {
  if (attributes == nullptr) return note(cudaErrorInvalidValue);
  const MemoryPlace place = place_of(ptr);
  void* const pointer = const_cast<void*>(ptr);
  const bool known = place.type != cudaMemoryTypeUnregistered;
  *attributes = {place.type, known ? place.device : -2, known ? pointer : nullptr,
                 place.type == cudaMemoryTypeDevice ? nullptr : pointer};
  return cudaSuccess;
}
