// What the mma.sync attention kernels share: tiles of bf16 rows in shared memory and a warp's
// products of them. A warp has 16 rows; fragments as in ptx.h (lane = 4 g + t: rows g and g + 8,
// columns 2 t and 2 t + 1 of each 8).
#pragma once

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/swizzle.h"

namespace phalanx {

inline constexpr int kMmaKeys = 64;   // keys of a block
inline constexpr int kWarpRows = 16;  // rows of a warp
inline constexpr int kCopyLanes = 4;  // neighbouring threads that copy a row: 64 bytes at once

/// Keys [begin, end) of a block.
struct SeenKeyRange {
  int begin;
  int end;
};

/// What a row of the tile sees of a block of keys; nothing if the tile has no such row.
__device__ inline SeenKeyRange seen_keys(const AttentionLayout& layout, int64_t pair,
                                         const TileRows& rows, const KeyBlock& block, int i) {
  if (i >= rows.count) return {0, 0};
  const AttentionRow row = rows.row(layout, i);
  const int64_t document = layout.document_of(pair, row.position - rows.shift);
  const PositionRange range = visible_in_block(layout.mask, block, row, document);
  return {static_cast<int>(range.begin), static_cast<int>(range.end)};
}

/// A tile of query rows and the blocks of keys it visits. It lies in shared memory and one thread
/// moves it on, because sums and fragments need the registers.
struct QueryTileSchedule {
  struct Block {
    KeyRows keys;
    bool exists;
    bool masked;  // some row does not see some key, or keys are fewer than a block's
  };
  TileRows rows;
  VisitedKeys visited;
  Block blocks[3];  // the block at work, the one that is being fetched, and the one after

  __device__ void begin(const AttentionLayout& layout, int64_t pair, int64_t number,
                        int64_t tile_rows) {
    const TileRows tile = query_tile(layout, pair, number, tile_rows);
    rows = tile;
    visited = VisitedKeys(layout, tile.tile, kMmaKeys);
    advance(layout, 0);
    advance(layout, 1);
  }
  __device__ void advance(const AttentionLayout& layout, int block) {
    KeyRows keys;
    blocks[block].exists = visited.next(layout, rows.tile, keys);
    blocks[block].masked = !keys.block.full || keys.count() < kMmaKeys;
    blocks[block].keys = keys;
  }
};

/// Starts copying rows 0 .. kRows - 1 into `tile`: row i from source(i), zeros from `count` on,
/// because whatever else is there might be NaN, and 0 * NaN is NaN.
template <int kWidth, int kRows, int kThreads, class Source>
__device__ void copy_rows_async(BFloat16* tile, int64_t count, const BFloat16* base,
                                Source&& source) {
  constexpr int kStep = kThreads / kCopyLanes;
  const int first_chunk = static_cast<int>(threadIdx.x) % kCopyLanes;
  const int first_row = static_cast<int>(threadIdx.x) / kCopyLanes;
#pragma unroll
  for (int row = first_row; row < kRows; row += kStep) {
    const bool exists = row < count;
    const BFloat16* from = exists ? base + source(row) : base;
#pragma unroll
    for (int chunk = first_chunk; chunk < kWidth / kChunkValues; chunk += kCopyLanes)
      copy_async_16(tile + swizzled<kWidth>(row, chunk), from + chunk * kChunkValues, exists);
  }
}

/// The same of rows that lie one after the other.
template <int kWidth, int kRows, int kThreads>
__device__ void copy_rows_async(BFloat16* tile, int64_t count, const BFloat16* source) {
  copy_rows_async<kWidth, kRows, kThreads>(tile, count, source,
                                           [](int row) { return row * kWidth; });
}

/// Starts the copies of a block's keys and values.
template <int kWidth, int kThreads, class Pointers>
__device__ void copy_keys_async(BFloat16* k, BFloat16* v, const AttentionLayout& layout,
                                const Pointers& at, int64_t pair, const KeyRows& keys) {
  const int64_t index = layout.key_index(keys.block.copy - layout.first_key_copy, pair, keys.row);
  copy_rows_async<kWidth, kMmaKeys, kThreads>(k, keys.count(), at.k + index);
  copy_rows_async<kWidth, kMmaKeys, kThreads>(v, keys.count(), at.v + index);
}

/// The fragment of rows [row, row + 16), columns [16 step, 16 step + 16) of a tile.
template <int kWidth>
__device__ void load_rows_fragment(uint32_t (&a)[4], const BFloat16* tile, int row, int step) {
  const int lane = threadIdx.x % kWarp;
  load_matrices(a, tile + swizzled<kWidth>(row + lane % 16, 2 * step + lane / 16));
}

/// sums[16, kColumns] += A[16, 16] B^T with A columns [16 step, ..) of the sum and B rows
/// [b_row, b_row + kColumns) of a tile.
template <int kWidth, int kColumns>
__device__ void add_rows_product_step(float (&sums)[kColumns / 8][4], const uint32_t (&a)[4],
                                      const BFloat16* b, int b_row, int step) {
  const int lane = threadIdx.x % kWarp;
  const int row = b_row + lane % 8 + lane / 16 * 8;
  const int chunk = 2 * step + lane / 8 % 2;
#pragma unroll
  for (int column = 0; column < kColumns / 8; column += 2) {
    uint32_t r[4];
    load_matrices(r, b + swizzled<kWidth>(row + column * 8, chunk));
    mma_m16n8k16(sums[column], a, {r[0], r[1]});
    mma_m16n8k16(sums[column + 1], a, {r[2], r[3]});
  }
}

/// sums[16, kColumns] = A B^T with A rows [a_row, a_row + 16) and B rows [b_row, b_row + kColumns)
/// of tiles.
template <int kWidth, int kColumns>
__device__ void rows_product(float (&sums)[kColumns / 8][4], const BFloat16* a, int a_row,
                             const BFloat16* b, int b_row) {
#pragma unroll
  for (auto& sum : sums) sum[0] = sum[1] = sum[2] = sum[3] = 0.0F;
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step) {
    uint32_t fragment[4];
    load_rows_fragment<kWidth>(fragment, a, a_row, step);
    add_rows_product_step<kWidth, kColumns>(sums, fragment, b, b_row, step);
  }
}

/// sums[16, kWidth] += W[16, kSum] B with B rows [b_row, b_row + kSum) of a tile.
template <int kWidth, int kSum>
__device__ void add_weighted_rows(float (&sums)[kWidth / 8][4],
                                  const uint32_t (&weights)[kSum / 16][4], const BFloat16* b,
                                  int b_row) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int step = 0; step < kSum / 16; ++step) {
#pragma unroll
    for (int column = 0; column < kWidth / 8; column += 2) {
      uint32_t r[4];
      load_matrices_transposed(
          r, b + swizzled<kWidth>(b_row + step * 16 + lane % 16, column + lane / 16));
      mma_m16n8k16(sums[column], weights[step], {r[0], r[1]});
      mma_m16n8k16(sums[column + 1], weights[step], {r[2], r[3]});
    }
  }
}

/// Scores [16, kColumns] of keys `first_key` on that the lane's rows, of seen[0 .. 15], do not see
/// become -infinity.
template <int kColumns>
__device__ void hide_scores(float (&scores)[kColumns / 8][4], const SeenKeyRange* seen,
                            int first_key) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const SeenKeyRange range = seen[lane / 4 + 8 * half];
#pragma unroll
    for (int column = 0; column < kColumns / 8; ++column) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = first_key + column * 8 + lane % 4 * 2 + i;
        if (key < range.begin || key >= range.end) scores[column][2 * half + i] = -INFINITY;
      }
    }
  }
}

/// Sums of [16, kColumns] rounded to bf16, as the left operand of the next product.
template <int kColumns>
__device__ void pack_fragments(uint32_t (&packed)[kColumns / 16][4],
                               const float (&sums)[kColumns / 8][4]) {
#pragma unroll
  for (int step = 0; step < kColumns / 16; ++step) {
    packed[step][0] = pack_bf16(sums[2 * step][0], sums[2 * step][1]);
    packed[step][1] = pack_bf16(sums[2 * step][2], sums[2 * step][3]);
    packed[step][2] = pack_bf16(sums[2 * step + 1][0], sums[2 * step + 1][1]);
    packed[step][3] = pack_bf16(sums[2 * step + 1][2], sums[2 * step + 1][3]);
  }
}

/// Rows [row, row + 16) of a tile that this warp alone uses = factor[g or g + 8] * sums, rounded.
template <int kWidth>
__device__ void stage_rows(BFloat16* tile, int row, const float (&sums)[kWidth / 8][4],
                           float factor_low, float factor_high) {
  const int lane = threadIdx.x % kWarp;
  const int pair = lane % 4 * 2;
  __syncwarp();
#pragma unroll
  for (int column = 0; column < kWidth / 8; ++column) {
    const float(&sum)[4] = sums[column];
    auto* low = tile + swizzled<kWidth>(row + lane / 4, column) + pair;
    auto* high = tile + swizzled<kWidth>(row + lane / 4 + 8, column) + pair;
    *reinterpret_cast<uint32_t*>(low) = pack_bf16(sum[0] * factor_low, sum[1] * factor_low);
    *reinterpret_cast<uint32_t*>(high) = pack_bf16(sum[2] * factor_high, sum[3] * factor_high);
  }
  __syncwarp();
}

/// Writes rows [row, row + 16) of a tile that are below `count`: row i to base + target(i).
template <int kWidth, class Target>
__device__ void write_rows(BFloat16* base, const BFloat16* tile, int row, int64_t count,
                           Target&& target) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = row + lane / kCopyLanes; i < row + kWarpRows; i += kWarp / kCopyLanes) {
    if (i >= count) continue;
    BFloat16* to = base + target(i);
#pragma unroll
    for (int chunk = lane % kCopyLanes; chunk < kWidth / kChunkValues; chunk += kCopyLanes)
      *reinterpret_cast<uint4*>(to + chunk * kChunkValues) =
          *reinterpret_cast<const uint4*>(tile + swizzled<kWidth>(i, chunk));
  }
}

/// Calls launch_width.template operator()<kWidth>() for the head dim.
template <class Launch>
void dispatch_width(int64_t head_dim, Launch&& launch_width) {
  if (head_dim == 64) return launch_width.template operator()<64>();
  if (head_dim == 96) return launch_width.template operator()<96>();
  launch_width.template operator()<128>();
}

}  // namespace phalanx
