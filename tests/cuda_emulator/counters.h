// What the emulated machine has done so far, for tests of launches, waits and copies.
#pragma once

#include <atomic>
#include <cstdint>

namespace phalanx::emulator {

/// Of the whole process, since its start or the last reset.
struct Counters {
  std::atomic<int64_t> kernel_launches{0};  // by the host; those of graphs count at their launch
  std::atomic<int64_t> graph_launches{0};
  std::atomic<int64_t> stream_synchronisations{0};
  std::atomic<int64_t> device_synchronisations{0};  // also the implicit ones of cudaFree
  std::atomic<int64_t> event_synchronisations{0};
  std::atomic<int64_t> device_allocations{0};
  std::atomic<int64_t> pinned_allocations{0};
  std::atomic<int64_t> bytes_to_device{0};
  std::atomic<int64_t> bytes_to_host{0};
  std::atomic<int64_t> bytes_on_device{0};
  std::atomic<int64_t> matrix_products{0};  // cublasLtMatmul
  std::atomic<int64_t> ranges{0};           // NVTX
  void reset();
};
Counters& counters();

/// Bytes of device memory in use on the current device, and the most there ever were.
int64_t device_bytes_in_use();
int64_t device_bytes_peak();

/// NVTX: both return the depth of the nest; popping an empty one is an error and returns -1.
int push_range(const char* name);
int pop_range();

}  // namespace phalanx::emulator
