// Sums of rows: how the threads of a block share rows, and partial sums of many rows that are added
// up in a fixed order.
#pragma once

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/reduce.h"

namespace phalanx {

/// Packs of a row that a thread keeps in registers between two passes over the row.
inline constexpr int kKept = 4;

/// Threads per row: each keeps kKept packs, if `most` allows that many threads. Whole warps.
inline int row_threads(int64_t packs, int most = 1024) {
  const int64_t warps = (packs + kKept * kWarp - 1) / (kKept * kWarp);
  return static_cast<int>(std::clamp<int64_t>(warps * kWarp, kWarp, most));
}

/// Blocks for `rows` rows: a block per row, or, where a warp is enough for one, four rows per
/// block, because small blocks alone cannot fill a multiprocessor. threadIdx.x runs along the row.
inline LaunchShape row_shape(int64_t rows, int threads) {
  const int64_t per_block = threads == kWarp ? 4 : 1;
  const int64_t blocks = (rows + per_block - 1) / per_block;
  check(blocks < (int64_t{1} << 31), "a kernel cannot have ", blocks, " blocks");
  return {dim3(static_cast<unsigned>(blocks)),
          dim3(static_cast<unsigned>(threads), static_cast<unsigned>(per_block))};
}

/// The row of this thread under row_shape. Beyond the last one it is for whole warps only.
__device__ inline int64_t own_row() {
  return int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
}

/// The sum over the threads of a row under row_shape, on all of them. `scratch` as in block_sum.
template <class T>
__device__ T row_sum(T value, T* scratch) {
  return blockDim.x == kWarp ? warp_sum(value) : block_sum(value, scratch);
}

inline constexpr int kPartGroups = 32;

/// total[i] += sum over parts of partial[part * width + i]. A block adds up 32 columns: thread (x,
/// y) the parts y, y + 32, .. of column x, then the 32 results, always in this order.
template <class T>
__global__ void add_parts_kernel(T* total, const T* partial, int64_t parts, int64_t width) {
  __shared__ T sums[kPartGroups][kWarp];
  const int64_t column = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  T sum{};
  if (column < width)
    for (int64_t part = threadIdx.y; part < parts; part += kPartGroups)
      sum += partial[part * width + column];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  for (int group = 1; group < kPartGroups; ++group) sum += sums[group][threadIdx.x];
  total[column] += sum;
}

template <class T>
void launch_add_parts(T* total, const T* partial, int64_t parts, int64_t width,
                      cudaStream_t stream) {
  const int64_t blocks = (width + kWarp - 1) / kWarp;
  check(blocks < (int64_t{1} << 31), "a kernel cannot have ", blocks, " blocks");
  launch(add_parts_kernel<T>, {dim3(static_cast<unsigned>(blocks)), dim3(kWarp, kPartGroups)},
         stream, total, partial, parts, width);
}

/// Number of parts for partial sums over `rows`: at most `most`, at least one, and few enough that
/// the sums are small beside what is summed. A function of the shapes alone, so that the same rows
/// are summed in the same order on every GPU.
inline int64_t number_of_parts(int64_t rows, int64_t most) {
  constexpr int64_t kRowsPerPart = 4;
  return std::clamp<int64_t>(rows / kRowsPerPart, 1, std::max<int64_t>(most, 1));
}

}  // namespace phalanx
