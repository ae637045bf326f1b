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
};

/// The facts of row i of a tile against a block of keys. Rows beyond the tile's end hold zeros, so
/// that they add zeros; a row that sees nothing has no finite lse, and nothing reads its weights.
__device__ inline RowFacts row_facts(const AttentionLayout& layout,
                                     const AttentionBackwardPointers<BFloat16>& at, int64_t pair,
                                     const TileRows& rows, int i) {
  if (i >= rows.count) return {0.0F, 0.0F};
  const int64_t row = pair * layout.rows() + rows.first + i;
  const float lse = at.lse[row];
  return {lse == -INFINITY ? 0.0F : lse * static_cast<float>(kAttentionLog2E), at.delta[row]};
}

// --- dk and dv ---

/// The block's keys and the query tiles that see them. It lies in shared memory and one thread
/// moves it on, because the sums of dk and dv leave no registers for it.
struct KeyTileSchedule {
  struct Tile {
    TileRows rows;
    bool exists;
    bool full;
  };
  KeyRows keys;
  VisitingQueries queries;
  Tile tiles[3];  // the tile at work, the one that is being fetched, and the one after

  __device__ void begin(const AttentionLayout& layout, int64_t pair, int64_t slot, int64_t number) {
    keys = key_tile(layout, slot, number, kMmaKeys);
    queries = VisitingQueries(layout, keys.block, kRows);
    advance(layout, pair, 0);
    advance(layout, pair, 1);
  }
  __device__ void advance(const AttentionLayout& layout, int64_t pair, int tile) {
    TileRows rows;
    bool full = false;
    tiles[tile].exists = queries.next(layout, pair, keys.block, rows, full);
    tiles[tile].full = full;
    tiles[tile].rows = rows;
  }
};

template <int kWidth>
struct KeyMemory {
  BFloat16 k[kMmaKeys * kWidth];  // later dk
  BFloat16 v[kMmaKeys * kWidth];  // later dv
  BFloat16 q[2][kRows * kWidth];
  BFloat16 dout[2][kRows * kWidth];
  RowFacts facts[2][kRows];
  SeenKeyRange seen[2][kRows];
  KeyTileSchedule schedule;
};

/// Scores [key, row] of keys that rows seen[0 .. kSlice - 1] do not see become -infinity.
__device__ inline void hide_keys(float (&scores)[kSlice / 8][4], const SeenKeyRange* seen,
                                 int key) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int column = 0; column < kSlice / 8; ++column) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const SeenKeyRange range = seen[column * 8 + lane % 4 * 2 + i % 2];
      const int own = key + lane / 4 + i / 2 * 8;
      if (own < range.begin || own >= range.end) scores[column][i] = -INFINITY;
    }
  }
}

/// Scores [key, row] become P, and products with v become dS, for rows facts[0 .. kSlice - 1].
__device__ inline void differentiate_keys(float (&weights)[kSlice / 8][4],
                                          float (&dscores)[kSlice / 8][4], const RowFacts* facts,
                                          float factor) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int column = 0; column < kSlice / 8; ++column) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const RowFacts row = facts[column * 8 + lane % 4 * 2 + i % 2];
      const float weight = exp2_approximate(weights[column][i] * factor - row.log2_sum);
      weights[column][i] = weight;
      dscores[column][i] = weight * (dscores[column][i] - row.delta);
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

/// Facts of the query tile's rows, a thread per row.
template <int kWidth>
__device__ void store_facts(KeyMemory<kWidth>& memory, int stage, const RowFacts& facts,
                            const AttentionLayout& layout, int64_t pair,
                            const KeyTileSchedule::Tile& tile) {
  const int own_row = threadIdx.x;
  if (own_row >= kRows) return;
  memory.facts[stage][own_row] = facts;
  if (!tile.full)
    memory.seen[stage][own_row] =
        seen_keys(layout, pair, tile.rows, memory.schedule.keys.block, own_row);
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads, kWidth == 64 ? 3 : 2)
    key_gradient_kernel(const __grid_constant__ AttentionLayout layout,
                        const AttentionBackwardPointers<BFloat16> at) {
  auto& memory = *dynamic_shared<KeyMemory<kWidth>>();
  KeyTileSchedule& schedule = memory.schedule;
  const int64_t pair = blockIdx.x % layout.num_pairs();
  const int64_t slot = blockIdx.x / layout.num_pairs() % layout.key_copies;
  // First tiles first: most queries see them, and the small ones fill the gaps at the end.
  const int64_t number = blockIdx.x / layout.num_pairs() / layout.key_copies;
  if (threadIdx.x == 0) schedule.begin(layout, pair, slot, number);
  __syncthreads();
  const int warp_key = static_cast<int>(threadIdx.x) / kWarp * kWarpRows;
  const auto factor = static_cast<float>(layout.scale * kAttentionLog2E);
  const KeyRows& keys = schedule.keys;
  const int64_t index = layout.key_index(slot, pair, keys.row);
  copy_rows_async<kWidth, kMmaKeys, kThreads>(memory.k, keys.count(), at.k + index);
  copy_rows_async<kWidth, kMmaKeys, kThreads>(memory.v, keys.count(), at.v + index);
  if (schedule.tiles[0].exists) {
    const KeyTileSchedule::Tile& tile = schedule.tiles[0];
    copy_queries_async<kWidth>(memory.q[0], memory.dout[0], layout, at, pair, tile.rows);
    store_facts(memory, 0, row_facts(layout, at, pair, tile.rows, threadIdx.x), layout, pair, tile);
  }
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();

  float dk[kWidth / 8][4] = {};
  float dv[kWidth / 8][4] = {};
  int current = 0;
  for (int stage = 0; schedule.tiles[current].exists; stage ^= 1) {
    const int following = current == 2 ? 0 : current + 1;
    const bool masked = !schedule.tiles[current].full;
    const KeyTileSchedule::Tile& next = schedule.tiles[following];
    RowFacts facts{};
    if (next.exists) {
      copy_queries_async<kWidth>(memory.q[stage ^ 1], memory.dout[stage ^ 1], layout, at, pair,
                                 next.rows);
      facts = row_facts(layout, at, pair, next.rows, threadIdx.x);
    }
    copy_async_commit();
#pragma unroll 1
    for (int row = 0; row < kRows; row += kSlice) {
      float weights[kSlice / 8][4];
      float dscores[kSlice / 8][4];
      uint32_t packed[kSlice / 16][4];
      rows_product<kWidth, kSlice>(weights, memory.k, warp_key, memory.q[stage], row);
      if (masked) hide_keys(weights, memory.seen[stage] + row, warp_key);
      rows_product<kWidth, kSlice>(dscores, memory.v, warp_key, memory.dout[stage], row);
      differentiate_keys(weights, dscores, memory.facts[stage] + row, factor);
      pack_fragments<kSlice>(packed, weights);
      add_weighted_rows<kWidth, kSlice>(dv, packed, memory.dout[stage], row);
      pack_fragments<kSlice>(packed, dscores);
      add_weighted_rows<kWidth, kSlice>(dk, packed, memory.q[stage], row);
    }
    if (next.exists) store_facts(memory, stage ^ 1, facts, layout, pair, next);
    if (threadIdx.x == 0) schedule.advance(layout, pair, following == 2 ? 0 : following + 1);
    current = following;
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
  QueryTileSchedule schedule;
};

/// Starts the copies of a block of keys, and finds out what the rows see of it, a thread per row.
/// Keys beyond the end of a block hold zeros, but 2^(0 - lse) may be infinite: nobody sees them.
template <int kWidth>
__device__ void fetch_block(QueryMemory<kWidth>& memory, int stage, const AttentionLayout& layout,
                            const AttentionBackwardPointers<BFloat16>& at, int64_t pair,
                            const QueryTileSchedule::Block& block) {
  copy_keys_async<kWidth, kThreads>(memory.k[stage], memory.v[stage], layout, at, pair, block.keys);
  if (block.masked && threadIdx.x < kRows)
    memory.seen[stage][threadIdx.x] =
        seen_keys(layout, pair, memory.schedule.rows, block.keys.block, threadIdx.x);
}

/// Scores [row, key] and products with v become dS.
__device__ inline void differentiate_rows(float (&dscores)[kSlice / 8][4],
                                          const float (&scores)[kSlice / 8][4],
                                          const RowFacts (&facts)[2], float factor) {
#pragma unroll
  for (int column = 0; column < kSlice / 8; ++column) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const RowFacts& row = facts[i / 2];
      const float weight = exp2_approximate(scores[column][i] * factor - row.log2_sum);
      dscores[column][i] = weight * (dscores[column][i] - row.delta);
    }
  }
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads, kWidth == 64 ? 3 : 2)
    query_gradient_kernel(const __grid_constant__ AttentionLayout layout,
                          const AttentionBackwardPointers<BFloat16> at) {
  auto& memory = *dynamic_shared<QueryMemory<kWidth>>();
  const int64_t pair = blockIdx.x % layout.num_pairs();
  const int64_t number = (gridDim.x - 1 - blockIdx.x) / layout.num_pairs();  // last tiles first
  QueryTileSchedule& schedule = memory.schedule;
  if (threadIdx.x == 0) schedule.begin(layout, pair, number, kRows);
  __syncthreads();
  const TileRows& rows = schedule.rows;
  const int64_t first = pair * layout.rows() + rows.first;
  const int lane = threadIdx.x % kWarp;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * kWarpRows;
  const auto factor = static_cast<float>(layout.scale * kAttentionLog2E);
  copy_queries_async<kWidth>(memory.q, memory.dout, layout, at, pair, rows);
  if (schedule.blocks[0].exists) fetch_block(memory, 0, layout, at, pair, schedule.blocks[0]);
  copy_async_commit();
  RowFacts facts[2];  // of the lane's two rows
#pragma unroll
  for (int half = 0; half < 2; ++half)
    facts[half] = row_facts(layout, at, pair, rows, warp_row + lane / 4 + 8 * half);
  copy_async_wait<0>();
  __syncthreads();

  float dq[kWidth / 8][4] = {};
  int current = 0;
  for (int stage = 0; schedule.blocks[current].exists; stage ^= 1) {
    const int following = current == 2 ? 0 : current + 1;
    const bool masked = schedule.blocks[current].masked;
    if (schedule.blocks[following].exists)
      fetch_block(memory, stage ^ 1, layout, at, pair, schedule.blocks[following]);
    copy_async_commit();
    if (threadIdx.x == 0) schedule.advance(layout, following == 2 ? 0 : following + 1);
#pragma unroll 1
    for (int key = 0; key < kMmaKeys; key += kSlice) {
      float scores[kSlice / 8][4];
      float dscores[kSlice / 8][4];
      uint32_t packed[kSlice / 16][4];
      rows_product<kWidth, kSlice>(scores, memory.q, warp_row, memory.k[stage], key);
      if (masked) hide_scores<kSlice>(scores, memory.seen[stage] + warp_row, key);
      rows_product<kWidth, kSlice>(dscores, memory.dout, warp_row, memory.v[stage], key);
      differentiate_rows(dscores, scores, facts, factor);
      pack_fragments<kSlice>(packed, dscores);
      add_weighted_rows<kWidth, kSlice>(dq, packed, memory.k[stage], key);
    }
    current = following;
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
