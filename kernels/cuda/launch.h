// launch: the one way to start a kernel. Checks the launch and names the kernel's op on failure.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "kernels/cuda/cuda_error.h"

namespace phalanx {

/// Blocks, threads per block and bytes of dynamic shared memory of one launch.
struct LaunchShape {
  dim3 grid;
  dim3 block;
  int64_t shared_bytes = 0;
};

/// Blocks of `threads` for `count` elements, one each.
inline LaunchShape one_thread_each(int64_t count, int threads = 256) {
  const int64_t blocks = (count + threads - 1) / threads;
  check(blocks < (int64_t{1} << 31), "a kernel cannot have ", blocks, " blocks");
  return {dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads))};
}

/// Starts `kernel` on `stream` and returns. An empty grid starts nothing.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
            Arguments&&... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  constexpr int64_t kSharedWithoutAsking = 48 << 10;
  if (shape.shared_bytes > kSharedWithoutAsking)
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shape.shared_bytes)),
               "cudaFuncSetAttribute");
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = stream;
  cuda_check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...),
             "kernel launch");
}

}  // namespace phalanx
