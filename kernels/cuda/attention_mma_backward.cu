// Backward of attention in bf16 by mma.sync, in two kernels without atomics, so that every run adds
// in the same order. With P = exp(scale q k^T - lse) and dS = P * (dout v^T - delta):
//   keys:    dv = P^T dout, dk = scale dS^T q   a block per 64 keys, over the query tiles that see
//   them queries: dq = scale dS k                    a block per 64 query rows, over the keys they
//   see
// Both make P and dS anew: seven matrix products where one kernel that adds dq up in memory needs
// five. lse and delta are those of whole rows, so parts of keys add up exactly.
#include "kernels/cuda/attention_mma.h"
#include "kernels/cuda/launch.h"

namespace phalanx {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRows = kWarps * kWarpRows;  // query rows of a tile
static_assert(kMmaKeys == kWarps * kWarpRows);
constexpr int kSlice = 32;  // columns of scores at once: they and the sums fit the registers

/// What a query row brings along.
struct RowFacts {
  float log2_sum;  // lse * log2(e)
  float delta;
  SeenKeyRange seen;
};

/// The facts of row i of a tile against a block of keys. Rows beyond the tile's end hold zeros, so
/// that they add zeros; a row that sees nothing has no finite lse, and nothing reads its weights.
__device__ inline RowFacts row_facts(const AttentionLayout& layout,
                                     const AttentionBackwardPointers<BFloat16>& at, int64_t pair,
                                     const TileRows& rows, int i) {
  if (i >= rows.count) return {0.0F, 0.0F, {0, 0}};
  const int64_t row = pair * layout.rows() + rows.first + i;
  const float lse = at.lse[row];
  return {
      lse == -INFINITY ? 0.0F : lse * static_cast<float>(kAttentionLog2E), at.delta[row], {0, 0}};
}

__device__ inline SeenKeyRange seen_keys(const AttentionLayout& layout, int64_t pair,
                                         const TileRows& rows, const KeyBlock& block, int i) {
  if (i >= rows.count) return {0, 0};
  const AttentionRow row = rows.row(layout, i);
  const int64_t document = layout.document_of(pair, row.position - rows.shift);
  const PositionRange range = visible_in_block(layout.mask, block, row, document);
  return {static_cast<int>(range.begin), static_cast<int>(range.end)};
}

// --- dk and dv ---

template <int kWidth>
struct KeyMemory {
  BFloat16 k[kMmaKeys * kWidth];  // later dk
  BFloat16 v[kMmaKeys * kWidth];  // later dv
  BFloat16 q[2][kRows * kWidth];
  BFloat16 dout[2][kRows * kWidth];
  RowFacts facts[2][kRows];
};

/// Scores [key, row] become P, and products with v become dS, for rows facts[0 .. kSlice - 1].
__device__ inline void differentiate_keys(float (&weights)[kSlice / 8][4],
                                          float (&dscores)[kSlice / 8][4], const RowFacts* facts,
                                          int key, bool masked, float factor) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int column = 0; column < kSlice / 8; ++column) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const RowFacts row = facts[column * 8 + lane % 4 * 2 + i];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int own = key + lane / 4 + 8 * half;
        float weight = exp2_approximate(weights[column][2 * half + i] * factor - row.log2_sum);
        if (masked && (own < row.seen.begin || own >= row.seen.end)) weight = 0.0F;
        weights[column][2 * half + i] = weight;
        dscores[column][2 * half + i] = weight * (dscores[column][2 * half + i] - row.delta);
      }
    }
  }
}

/// Starts the copies of a query tile's rows of q and dout.
template <int kWidth>
__device__ void copy_queries_async(BFloat16* q, BFloat16* dout, const AttentionLayout& layout,
                                   const AttentionBackwardPointers<BFloat16>& at, int64_t pair,
                                   const TileRows& rows) {
  copy_rows_async<kWidth, kRows, kThreads>(q, rows.count,
                                           at.q + (pair * layout.rows() + rows.first) * kWidth);
  const OutputRows out(layout, pair, rows.first);
  copy_rows_async<kWidth, kRows, kThreads>(dout, rows.count, at.dout, [&](int row) {
    return out.index(layout, static_cast<uint32_t>(row));
  });
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads, 2)
    key_gradient_kernel(const __grid_constant__ AttentionLayout layout,
                        const AttentionBackwardPointers<BFloat16> at) {
  auto& memory = *dynamic_shared<KeyMemory<kWidth>>();
  const int64_t pair = blockIdx.x % layout.num_pairs();
  const int64_t slot = blockIdx.x / layout.num_pairs() % layout.key_copies;
  // First tiles first: most queries see them, and the small ones fill the gaps at the end.
  const int64_t number = blockIdx.x / layout.num_pairs() / layout.key_copies;
  const KeyRows keys = key_tile(layout, slot, number, kMmaKeys);
  const int64_t index = layout.key_index(slot, pair, keys.row);
  const int warp_key = static_cast<int>(threadIdx.x) / kWarp * kWarpRows;
  const int own_row = threadIdx.x;  // of a query tile, for threads that have one
  const auto factor = static_cast<float>(layout.scale * kAttentionLog2E);

  VisitingQueries tiles(layout, keys.block, kRows);
  TileRows rows;
  bool full = false;
  bool more = tiles.next(layout, pair, keys.block, rows, full);
  copy_rows_async<kWidth, kMmaKeys, kThreads>(memory.k, keys.count(), at.k + index);
  copy_rows_async<kWidth, kMmaKeys, kThreads>(memory.v, keys.count(), at.v + index);
  if (more) {
    copy_queries_async<kWidth>(memory.q[0], memory.dout[0], layout, at, pair, rows);
    if (own_row < kRows) {
      RowFacts facts = row_facts(layout, at, pair, rows, own_row);
      if (!full) facts.seen = seen_keys(layout, pair, rows, keys.block, own_row);
      memory.facts[0][own_row] = facts;
    }
  }
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();

  float dk[kWidth / 8][4] = {};
  float dv[kWidth / 8][4] = {};
  for (int stage = 0; more; stage ^= 1) {
    const bool masked = !full;
    more = tiles.next(layout, pair, keys.block, rows, full);
    RowFacts facts{};
    if (more) {
      copy_queries_async<kWidth>(memory.q[stage ^ 1], memory.dout[stage ^ 1], layout, at, pair,
                                 rows);
      if (own_row < kRows) facts = row_facts(layout, at, pair, rows, own_row);
    }
    copy_async_commit();
#pragma unroll 1
    for (int row = 0; row < kRows; row += kSlice) {
      float weights[kSlice / 8][4];
      float dscores[kSlice / 8][4];
      uint32_t packed[kSlice / 16][4];
      rows_product<kWidth, kSlice>(weights, memory.k, warp_key, memory.q[stage], row);
      rows_product<kWidth, kSlice>(dscores, memory.v, warp_key, memory.dout[stage], row);
      differentiate_keys(weights, dscores, memory.facts[stage] + row, warp_key, masked, factor);
      pack_fragments<kSlice>(packed, weights);
      add_weighted_rows<kWidth, kSlice>(dv, packed, memory.dout[stage], row);
      pack_fragments<kSlice>(packed, dscores);
      add_weighted_rows<kWidth, kSlice>(dk, packed, memory.q[stage], row);
    }
    if (more && own_row < kRows) {
      if (!full) facts.seen = seen_keys(layout, pair, rows, keys.block, own_row);
      memory.facts[stage ^ 1][own_row] = facts;
    }
    copy_async_wait<0>();
    __syncthreads();
  }
  const auto scale = static_cast<float>(layout.scale);
  stage_rows<kWidth>(memory.k, warp_key, dk, scale, scale);
  stage_rows<kWidth>(memory.v, warp_key, dv, 1.0F, 1.0F);
  const auto target = [](int row) { return row * kWidth; };
  write_rows<kWidth>(at.dk + index, memory.k, warp_key, keys.count(), target);
  write_rows<kWidth>(at.dv + index, memory.v, warp_key, keys.count(), target);
}

// --- dq ---

template <int kWidth>
struct QueryMemory {
  BFloat16 q[kRows * kWidth];  // later dq
  BFloat16 dout[kRows * kWidth];
  BFloat16 k[2][kMmaKeys * kWidth];
  BFloat16 v[2][kMmaKeys * kWidth];
  SeenKeyRange seen[2][kRows];
};

template <int kWidth>
__device__ void copy_keys_async(QueryMemory<kWidth>& memory, int stage,
                                const AttentionLayout& layout,
                                const AttentionBackwardPointers<BFloat16>& at, int64_t pair,
                                const KeyRows& keys) {
  const int64_t index = layout.key_index(keys.block.copy - layout.first_key_copy, pair, keys.row);
  copy_rows_async<kWidth, kMmaKeys, kThreads>(memory.k[stage], keys.count(), at.k + index);
  copy_rows_async<kWidth, kMmaKeys, kThreads>(memory.v[stage], keys.count(), at.v + index);
}

/// Keys beyond the end of a block hold zeros, but 2^(0 - lse) may be infinite: they are masked.
__device__ inline bool is_masked(const KeyRows& keys) {
  return !keys.block.full || keys.count() < kMmaKeys;
}

/// Scores [row, key] become dS, given their products with v, for keys `first_key` on of a block.
__device__ inline void differentiate_rows(float (&dscores)[kSlice / 8][4],
                                          const float (&scores)[kSlice / 8][4],
                                          const RowFacts (&facts)[2], int first_key, float factor) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const RowFacts& row = facts[half];
#pragma unroll
    for (int column = 0; column < kSlice / 8; ++column) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = first_key + column * 8 + lane % 4 * 2 + i;
        float weight = exp2_approximate(scores[column][2 * half + i] * factor - row.log2_sum);
        if (key < row.seen.begin || key >= row.seen.end) weight = 0.0F;
        dscores[column][2 * half + i] = weight * (dscores[column][2 * half + i] - row.delta);
      }
    }
  }
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads, 2)
    query_gradient_kernel(const __grid_constant__ AttentionLayout layout,
                          const AttentionBackwardPointers<BFloat16> at) {
  auto& memory = *dynamic_shared<QueryMemory<kWidth>>();
  const int64_t pair = blockIdx.x % layout.num_pairs();
  const int64_t number = (gridDim.x - 1 - blockIdx.x) / layout.num_pairs();  // last tiles first
  const TileRows rows = query_tile(layout, pair, number, kRows);
  const int64_t first = pair * layout.rows() + rows.first;
  const int lane = threadIdx.x % kWarp;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * kWarpRows;
  const int own_row = threadIdx.x;  // of the tile, for threads that have one
  const auto factor = static_cast<float>(layout.scale * kAttentionLog2E);

  VisitedKeys blocks(layout, rows.tile, kMmaKeys);
  KeyRows keys;
  bool more = blocks.next(layout, rows.tile, keys);
  copy_queries_async<kWidth>(memory.q, memory.dout, layout, at, pair, rows);
  if (more) {
    copy_keys_async(memory, 0, layout, at, pair, keys);
    if (own_row < kRows && is_masked(keys))
      memory.seen[0][own_row] = seen_keys(layout, pair, rows, keys.block, own_row);
  }
  copy_async_commit();
  RowFacts facts[2];  // of the lane's two rows
#pragma unroll
  for (int half = 0; half < 2; ++half)
    facts[half] = row_facts(layout, at, pair, rows, warp_row + lane / 4 + 8 * half);
  copy_async_wait<0>();
  __syncthreads();

  float dq[kWidth / 8][4] = {};
  for (int stage = 0; more; stage ^= 1) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      facts[half].seen = is_masked(keys) ? memory.seen[stage][warp_row + lane / 4 + 8 * half]
                                         : SeenKeyRange{0, kMmaKeys};
    more = blocks.next(layout, rows.tile, keys);
    if (more) copy_keys_async(memory, stage ^ 1, layout, at, pair, keys);
    copy_async_commit();
#pragma unroll 1
    for (int key = 0; key < kMmaKeys; key += kSlice) {
      float scores[kSlice / 8][4];
      float dscores[kSlice / 8][4];
      uint32_t packed[kSlice / 16][4];
      rows_product<kWidth, kSlice>(scores, memory.q, warp_row, memory.k[stage], key);
      rows_product<kWidth, kSlice>(dscores, memory.dout, warp_row, memory.v[stage], key);
      differentiate_rows(dscores, scores, facts, key, factor);
      pack_fragments<kSlice>(packed, dscores);
      add_weighted_rows<kWidth, kSlice>(dq, packed, memory.k[stage], key);
    }
    if (more && own_row < kRows && is_masked(keys))
      memory.seen[stage ^ 1][own_row] = seen_keys(layout, pair, rows, keys.block, own_row);
    copy_async_wait<0>();
    __syncthreads();
  }
  const auto scale = static_cast<float>(layout.scale);
  stage_rows<kWidth>(memory.q, warp_row, dq, scale, scale);
  write_rows<kWidth>(at.dq + first * kWidth, memory.q, warp_row, rows.count,
                     [](int row) { return row * kWidth; });
}

}  // namespace

void attention_mma_backward(const AttentionLayout& layout,
                            const AttentionBackwardPointers<BFloat16>& pointers,
                            cudaStream_t stream) {
  const int64_t key_blocks =
      num_key_tiles(layout, kMmaKeys) * layout.num_pairs() * layout.key_copies;
  const int64_t query_blocks = num_query_tiles(layout, kRows) * layout.num_pairs();
  dispatch_width(layout.head_dim, [&]<int kWidth>() {
    LaunchShape shape = one_thread_each(key_blocks * kThreads, kThreads);
    shape.shared_bytes = sizeof(KeyMemory<kWidth>);
    launch(key_gradient_kernel<kWidth>, shape, stream, layout, pointers);
    shape = one_thread_each(query_blocks * kThreads, kThreads);
    shape.shared_bytes = sizeof(QueryMemory<kWidth>);
    launch(query_gradient_kernel<kWidth>, shape, stream, layout, pointers);
  });
}

}  // namespace phalanx
