// Sums and maxima over a warp or a block, in a fixed order: the same bits on every run.
#pragma once

#include "kernels/cuda/ptx.h"

namespace phalanx {

/// The sum over the warp's lanes, on all of them. Every lane takes part.
template <class T>
__device__ T warp_sum(T value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

template <class T>
__device__ T warp_max(T value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, offset);
    value = value > other ? value : other;
  }
  return value;
}

/// The sum over the block, on all threads. All threads take part; blockDim.x, the only dim, is a
/// multiple of 32. `scratch` is shared memory of 32 T, free again after the call.
template <class T>
__device__ T block_sum(T value, T* scratch) {
  const auto lane = threadIdx.x % kWarp;
  const auto warp = threadIdx.x / kWarp;
  value = warp_sum(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  value = lane < blockDim.x / kWarp ? scratch[lane] : T{0};
  value = warp_sum(value);
  __syncthreads();  // so that the next call may write scratch
  return value;
}

/// The maximum over the block, likewise. `lowest` is what no value lies below.
template <class T>
__device__ T block_max(T value, T* scratch, T lowest) {
  const auto lane = threadIdx.x % kWarp;
  const auto warp = threadIdx.x / kWarp;
  value = warp_max(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  value = lane < blockDim.x / kWarp ? scratch[lane] : lowest;
  value = warp_max(value);
  __syncthreads();
  return value;
}

}  // namespace phalanx
