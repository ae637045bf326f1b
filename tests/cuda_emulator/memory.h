// Which memory a pointer points into.
#pragma once

#include <cstddef>

#include "tests/cuda_emulator/include/cuda_runtime_api.h"

namespace phalanx::emulator {

struct MemoryPlace {
  cudaMemoryType type = cudaMemoryTypeUnregistered;
  int device = 0;
  size_t bytes_from_here = 0;  // to the end of its allocation; 0 where nothing is known
};
MemoryPlace place_of(const void* pointer);

/// Whether `bytes` from `pointer` are inside of one allocation on a device.
bool is_device_range(const void* pointer, size_t bytes);

}  // namespace phalanx::emulator
