// Radix sort from the lowest digit up (Knuth, The Art of Computer Programming 3, 5.2.5). A pass
// counts the digits of each tile of keys, sums the counts in the order (digit, tile), and moves
// each key to its digit's next place.
#include "kernels/cuda/radix_sort.h"

#include <bit>
#include <limits>
#include <utility>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

namespace phalanx {
namespace {

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kThreads = kDigits;  // thread d sums digit d over the warps
constexpr int kWarps = kThreads / kWarp;
constexpr int kRounds = 8;  // keys per thread; warp w of a tile takes 32 * kRounds in a row
constexpr int kTile = kThreads * kRounds;
constexpr int kScanThreads = 1024;

int64_t num_tiles(int64_t count) {
  return (count + kTile - 1) / kTile;
}

struct Pass {
  const int32_t* keys;
  const int32_t* origins;  // null in the first pass: each key's index
  int32_t* sorted_keys;
  int32_t* sorted_origins;
  int32_t* offsets;  // [kDigits, tiles]
  int64_t count;
  int64_t tiles;
  int shift;

  __device__ int digit(int64_t index) const {
    return static_cast<int>(static_cast<uint32_t>(keys[index]) >> shift) & (kDigits - 1);
  }
};

/// Index of this thread's key of round 0; the next rounds' follow at distances of 32.
__device__ int64_t first_key() {
  const auto warp = threadIdx.x / kWarp;
  return int64_t{blockIdx.x} * kTile + warp * (kWarp * kRounds) + threadIdx.x % kWarp;
}

/// counts[warp][digit] of the warp's keys. All threads of the block take part.
__device__ void count_digits(int (&counts)[kWarps][kDigits], const Pass& pass) {
  for (int warp = 0; warp < kWarps; ++warp) counts[warp][threadIdx.x] = 0;
  __syncthreads();
  for (int round = 0; round < kRounds; ++round) {
    const int64_t index = first_key() + round * kWarp;
    if (index < pass.count) atomicAdd(&counts[threadIdx.x / kWarp][pass.digit(index)], 1);
  }
  __syncthreads();
}

__global__ void count_kernel(Pass pass) {
  __shared__ int counts[kWarps][kDigits];
  count_digits(counts, pass);
  int sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += counts[warp][threadIdx.x];
  pass.offsets[threadIdx.x * pass.tiles + blockIdx.x] = sum;
}

/// The sum of `value` over this and all lower lanes.
__device__ int sum_to_lane(int value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int other = __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(distance));
    if (lane >= distance) value += other;
  }
  return value;
}

/// values[i] becomes the sum of all before it. One block.
__global__ void scan_kernel(int32_t* values, int64_t count) {
  __shared__ int warp_sums[kWarp];
  const auto lane = threadIdx.x % kWarp;
  const auto warp = threadIdx.x / kWarp;
  int before = 0;
  for (int64_t begin = 0; begin < count; begin += kScanThreads) {
    const int64_t index = begin + threadIdx.x;
    const int value = index < count ? values[index] : 0;
    const int in_warp = sum_to_lane(value);
    if (lane == kWarp - 1) warp_sums[warp] = in_warp;
    __syncthreads();
    const int all = sum_to_lane(warp_sums[lane]);
    const int warps_before = __shfl_sync(kAllLanes, all, static_cast<int>(warp)) - warp_sums[warp];
    if (index < count) values[index] = before + warps_before + in_warp - value;
    before += __shfl_sync(kAllLanes, all, kWarp - 1);
    __syncthreads();
  }
}

/// The lanes that hold a key of this lane's digit. `holds`: this lane holds one.
__device__ unsigned lanes_of_digit(int digit, bool holds) {
  unsigned lanes = __ballot_sync(kAllLanes, holds);
  for (int bit = 0; bit < kDigitBits; ++bit) {
    const bool set = (digit >> bit & 1) != 0;
    const unsigned with_bit = __ballot_sync(kAllLanes, set);
    lanes &= set ? with_bit : ~with_bit;
  }
  return lanes;
}

__global__ void move_kernel(Pass pass) {
  __shared__ int next[kWarps][kDigits];  // counts, then where a warp's next key of a digit goes
  count_digits(next, pass);
  int place = pass.offsets[threadIdx.x * pass.tiles + blockIdx.x];
  for (int warp = 0; warp < kWarps; ++warp) {
    const int keys = next[warp][threadIdx.x];
    next[warp][threadIdx.x] = place;
    place += keys;
  }
  __syncthreads();
  int(&mine)[kDigits] = next[threadIdx.x / kWarp];
  const unsigned lower_lanes = (1U << threadIdx.x % kWarp) - 1U;
  for (int round = 0; round < kRounds; ++round) {
    const int64_t index = first_key() + round * kWarp;
    const bool holds = index < pass.count;
    const int digit = holds ? pass.digit(index) : 0;
    const unsigned lanes = lanes_of_digit(digit, holds);
    const int target = mine[digit] + __popc(lanes & lower_lanes);
    __syncwarp();  // all have read before one writes
    if (holds && (lanes & lower_lanes) == 0) mine[digit] += __popc(lanes);
    __syncwarp();
    if (!holds) continue;
    pass.sorted_keys[target] = pass.keys[index];
    pass.sorted_origins[target] =
        pass.origins == nullptr ? static_cast<int32_t>(index) : pass.origins[index];
  }
}

}  // namespace

int64_t sort_bytes(int64_t count) {
  return (4 * count + kDigits * num_tiles(count)) * int64_t{sizeof(int32_t)};
}

SortBuffers sort_buffers(void* workspace, int64_t count) {
  check(count <= std::numeric_limits<int32_t>::max(), "a sort of ", count,
        " keys needs more than 32 bits for their places; use a smaller micro-batch");
  auto* memory = static_cast<int32_t*>(workspace);
  return {.keys = memory,
          .origins = memory + count,
          .other_keys = memory + 2 * count,
          .other_origins = memory + 3 * count,
          .offsets = memory + 4 * count};
}

void sort_keys(SortBuffers& buffers, int64_t count, int64_t largest, cudaStream_t stream) {
  const int64_t tiles = num_tiles(count);
  if (tiles == 0) return;
  const int bits = std::bit_width(static_cast<uint64_t>(largest));
  for (int shift = 0; shift == 0 || shift < bits; shift += kDigitBits) {
    const Pass pass{.keys = buffers.keys,
                    .origins = shift == 0 ? nullptr : buffers.origins,
                    .sorted_keys = buffers.other_keys,
                    .sorted_origins = buffers.other_origins,
                    .offsets = buffers.offsets,
                    .count = count,
                    .tiles = tiles,
                    .shift = shift};
    launch(count_kernel, one_thread_each(tiles * kThreads, kThreads), stream, pass);
    launch(scan_kernel, one_thread_each(kScanThreads, kScanThreads), stream, buffers.offsets,
           kDigits * tiles);
    launch(move_kernel, one_thread_each(tiles * kThreads, kThreads), stream, pass);
    std::swap(buffers.keys, buffers.other_keys);
    std::swap(buffers.origins, buffers.other_origins);
  }
}

}  // namespace phalanx
