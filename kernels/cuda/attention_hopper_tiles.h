// Parts that Hopper's attention kernels share: tiles in shared memory and their products, the ring
// of tiles that TMA fills, and the visible part of a block.
#pragma once

#include "kernels/attention_schedule.h"
#include "kernels/cuda/ptx_hopper.h"
#include "kernels/cuda/wgmma_layout.h"

namespace phalanx {

inline constexpr float kLog2E = 1.4426950408889634F;
inline constexpr int kWarpgroupRows = 64;  // rows of a product of one warpgroup

/// Threads that a kernel of this file's kind may be launched with: few in code for an architecture
/// that has not Hopper's own instructions, because its body is then empty. The runtime knows the
/// number, and so the program knows the code.
constexpr int hopper_threads(int threads) {
  return kHopperCode ? threads : kWarp;
}

/// `kRows` rows of 64 or 128 values of bf16, as TMA brings them (wgmma_layout.h). Heads of other
/// widths are padded with zeros by TMA.
template <int kRows, int kWidth>
struct alignas(kGroupBytes) SharedTile {
  static constexpr int kBytes = kRows * kWidth * 2;
  static_assert(kRows % 8 == 0 && kWidth % kHalfColumns == 0);
  BFloat16 data[kRows * kWidth];

  /// One thread: brings rows [row, row + kRows) of `plane`; `barrier` counts kBytes.
  __device__ void load(const TensorMap& map, int64_t row, int64_t plane, uint64_t* barrier) {
    for (int half = 0; half < kWidth / kHalfColumns; ++half)
      tensor_load(data + half * kRows * kHalfColumns, map, half * kHalfColumns,
                  static_cast<int32_t>(row), static_cast<int32_t>(plane), barrier);
  }
  /// Operand whose rows are those of A or the columns of B, from `row` (a multiple of 8) on.
  __device__ uint64_t by_rows(int row = 0) const {
    return matrix_descriptor(data + row * kHalfColumns, kGroupBytes, 16);
  }
  /// B whose rows are summed over.
  __device__ uint64_t by_columns() const {
    return matrix_descriptor(data, kGroupBytes, kRows * kRowBytes);
  }
};

/// d[64, n] = a b^T, summed over the width of tiles of kRowsA and kRowsB rows. Collective; fences
/// and waits are the caller's.
template <int kWidth, int kRowsA, int kRowsB, int kCount>
__device__ void multiply(float (&d)[kCount], uint64_t a, uint64_t b) {
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step)
    wgmma<Major::k, Major::k>(d, a + (column_step(kRowsA, step) >> 4),
                              b + (column_step(kRowsB, step) >> 4), step != 0);
}

/// d[64, n] += a b, a in registers, summed over the rows of b. Likewise.
template <int kSteps, int kCount>
__device__ void accumulate(float (&d)[kCount], const uint32_t (&a)[kSteps][4], uint64_t b) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
    wgmma<Major::mn>(d, a[step], b + (row_step(step) >> 4), true);
}

/// Sums rounded to bf16, as the left operand of the next product.
template <int kSteps>
__device__ void round_operand(uint32_t (&a)[kSteps][4], const float (&d)[kSteps * 8]) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int r = 0; r < 4; ++r)
      a[step][r] = pack_bf16(d[first_of_operand(step, r)], d[first_of_operand(step, r) + 1]);
}

/// Place in a ring of kStages buffers: each has a barrier for "filled" and one for "free".
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t round = 0;

  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      ++round;
    }
  }
  /// Parity to wait for, of "filled" by who reads, of "free" by who fills. The first round's
  /// buffers are free from the start: on a fresh barrier the parity 1 counts as past.
  __device__ uint32_t filled() const { return round & 1; }
  __device__ uint32_t free() const { return (round + 1) & 1; }
};

/// Warps arrive, not threads: lane 0, once all lanes have read what the barrier protects.
__device__ inline void arrive_as_warp(uint64_t* barrier) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) barrier_arrive(barrier);
}

/// The query rows of one block of threads.
struct PairTile {
  int64_t pair;
  TileRows rows;
};

/// Tile of block `number` of a grid of pairs x tiles. Last tiles come first: they see the most
/// keys, and the small ones fill the gaps at the end.
__device__ inline PairTile longest_first(const AttentionLayout& layout, int64_t number,
                                         int64_t tile_rows) {
  const int64_t pair = number % layout.num_pairs();
  const int64_t tile = num_query_tiles(layout, tile_rows) - 1 - number / layout.num_pairs();
  return {pair, query_tile(layout, pair, tile, tile_rows)};
}

/// Plane of k and v, as matrices of rows, that holds `keys`.
__device__ inline int64_t key_plane(const AttentionLayout& layout, const KeyRows& keys,
                                    int64_t pair) {
  return (keys.block.copy - layout.first_key_copy) * layout.num_pairs() + pair;
}

/// A row of a tile; `there` is false beyond the tile's last.
struct QueryRow {
  AttentionRow row{};
  int64_t document = 0;
  bool there = false;
};
__device__ inline QueryRow query_row(const AttentionLayout& layout, int64_t pair,
                                     const TileRows& rows, int i) {
  if (i >= rows.count) return {};
  return {rows.row(layout, i), layout.document_of(pair, rows.query(layout, i)), true};
}

/// Whether a block's scores need the mask; `end` says that no block follows.
enum class BlockKind : int { full, masked, end };

/// Key columns [begin, end) of a block.
struct VisibleColumns {
  int begin = 0;
  int end = 0;
};

/// Those that `row` sees; none if the row is not there.
__device__ inline VisibleColumns visible_columns(const AttentionLayout& layout,
                                                 const KeyBlock& block, const QueryRow& row) {
  if (!row.there) return {};
  if (block.full) return {0, static_cast<int>(block.end - block.begin)};
  const PositionRange range = visible_in_block(layout.mask, block, row.row, row.document);
  return {static_cast<int>(range.begin), range.end < 0 ? 0 : static_cast<int>(range.end)};
}

/// Writes a thread's columns of one of its two rows (`half`) of a product, times `factor`.
template <int kCount>
__device__ void store_fragment_row(BFloat16* row, const float (&d)[kCount], int half, float factor,
                                   int64_t width) {
  const int thread = static_cast<int>(threadIdx.x % kWarpgroup);
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const int column = fragment_column(thread, i);
    const uint32_t pair = pack_bf16(d[i + half * 2] * factor, d[i + half * 2 + 1] * factor);
    if (column < width) *reinterpret_cast<uint32_t*>(row + column) = pair;
  }
}

/// Maps of tensors like q [B, G, Sq, Kq*R, D] and like k [Kk, B, G, Sk, D] as planes of rows.
inline TensorMap query_map(const AttentionLayout& layout, const BFloat16* q, int rows) {
  return make_tensor_map(q, {layout.head_dim, layout.rows(), layout.num_pairs()},
                         {kHalfColumns, rows, 1});
}
inline TensorMap key_map(const AttentionLayout& layout, const BFloat16* k, int rows) {
  return make_tensor_map(k, {layout.head_dim, layout.keys, layout.key_copies * layout.num_pairs()},
                         {kHalfColumns, rows, 1});
}

/// A grid of num_pairs x `tiles` blocks, as longest_first() numbers them.
inline dim3 pairs_by_tiles(const AttentionLayout& layout, int64_t tiles) {
  const int64_t blocks = layout.num_pairs() * tiles;
  check(blocks < (int64_t{1} << 31), "attention would need ", blocks, " blocks of threads");
  return dim3(static_cast<unsigned>(blocks));
}

}  // namespace phalanx
