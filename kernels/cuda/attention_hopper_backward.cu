// Backward of attention on Hopper. With P = exp(scale q k^T - lse) and dS = P * (dout v^T - delta):
// dv = P^T dout,  dq = scale dS k,  dk = scale dS^T q. Two passes, each deterministic because a
// block of threads owns what it sums: tiles of keys visit the query tiles that see them (dk, dv),
// tiles of queries visit keys (dq). Scores are made twice, seven products instead of five, because
// dq summed from the key tiles would need an order among blocks or float atomics.
//
// dout is laid out as q before, in the memory of dq, so that TMA can bring its rows; the second
// pass reads a tile's dout there before it writes the same rows of dq.
#include "kernels/cuda/attention_hopper_backward.h"
#include "kernels/cuda/launch.h"

namespace phalanx::hopper_backward {
namespace {

// --- dout in the layout of q ---

__global__ void __launch_bounds__(256)
    gather_rows_kernel(const __grid_constant__ AttentionLayout layout, BFloat16* rows,
                       const BFloat16* dout) {
  const int64_t packs = layout.head_dim / 8;
  const int64_t pack = int64_t{blockIdx.x} * 256 + threadIdx.x;
  const int64_t row = pack / packs;
  if (row >= layout.num_pairs() * layout.rows()) return;
  const int64_t index = layout.output_index(row / layout.rows(), row % layout.rows());
  reinterpret_cast<uint4*>(rows)[pack] = reinterpret_cast<const uint4*>(dout + index)[pack % packs];
}

// --- dk and dv ---

/// The keys of one block of threads.
struct KeyTile {
  int64_t pair;
  int64_t slot;
  KeyRows keys;
};
/// Originals first, and early keys: most queries see them.
__device__ inline KeyTile most_seen_first(const AttentionLayout& layout, int64_t number,
                                          int64_t tile_keys) {
  const int64_t tiles = num_key_tiles(layout, tile_keys);
  const int64_t tile = number / layout.num_pairs();
  const int64_t slot = tile / tiles;
  return {number % layout.num_pairs(), slot, key_tile(layout, slot, tile % tiles, tile_keys)};
}

template <int kPaddedWidth>
struct KeyGradient {
  static constexpr int kWidth = kPaddedWidth;
  static constexpr int kKeys = kConsumers * kWarpgroupRows;
  static constexpr int kRows = 64;
  static constexpr int kFillers = kRows / kWarp;  // warps: one thread per query row

  struct Shared {
    SharedTile<kKeys, kWidth> k, v;
    SharedTile<kRows, kWidth> q[kStages], dout[kStages];
    VisibleColumns columns[kStages][kRows];  // keys that each query row sees, if masked
    alignas(16) float log2_sum[kStages][kRows];
    alignas(16) float delta[kStages][kRows];
    BlockKind kind[kStages];
    KeyTile own;
    VisitingQueries visiting;  // the schedule is here, because producers have few registers
    TileRows rows[kStages];
    uint64_t keys_filled, filled[kStages], free[kStages];
  };
};

/// One thread, once `stage` is free: finds the next query tile, brings its rows.
template <class G>
__device__ void fetch_queries(typename G::Shared& shared, int stage, const BackwardMaps& maps,
                              const AttentionLayout& layout) {
  const int64_t pair = shared.own.pair;
  bool full = false;
  if (!shared.visiting.next(layout, pair, shared.own.keys.block, shared.rows[stage], full)) {
    shared.kind[stage] = BlockKind::end;
    return;
  }
  shared.kind[stage] = full ? BlockKind::full : BlockKind::masked;
  uint64_t* filled = &shared.filled[stage];
  barrier_expect(filled, shared.q[stage].kBytes + shared.dout[stage].kBytes);
  shared.q[stage].load(maps.q, shared.rows[stage].first, pair, filled);
  shared.dout[stage].load(maps.dout, shared.rows[stage].first, pair, filled);
}

/// What consumers need of row threadIdx.x of a query tile.
template <class G>
__device__ void describe_row(typename G::Shared& shared, int stage, const AttentionLayout& layout,
                             const AttentionBackwardPointers<BFloat16>& pointers) {
  const int i = static_cast<int>(threadIdx.x);
  const int64_t index = shared.own.pair * layout.rows() + shared.rows[stage].first + i;
  const bool there = i < shared.rows[stage].count;
  shared.log2_sum[stage][i] = there ? log2_sum(pointers.lse[index]) : INFINITY;
  shared.delta[stage][i] = there ? pointers.delta[index] : 0.0F;
  if (shared.kind[stage] != BlockKind::masked) return;
  shared.columns[stage][i] = visible_columns(
      layout, shared.own.keys.block, query_row(layout, shared.own.pair, shared.rows[stage], i));
}

/// kFillers warps: bring the keys, then every query tile that sees one of them.
template <class G>
__device__ void fill_queries(typename G::Shared& shared, const BackwardMaps& maps,
                             const AttentionLayout& layout,
                             const AttentionBackwardPointers<BFloat16>& pointers) {
  if (threadIdx.x == 0) {
    const int64_t plane = key_plane(layout, shared.own.keys, shared.own.pair);
    barrier_arrive_expecting(&shared.keys_filled, shared.k.kBytes + shared.v.kBytes);
    shared.k.load(maps.k, shared.own.keys.row, plane, &shared.keys_filled);
    shared.v.load(maps.v, shared.own.keys.row, plane, &shared.keys_filled);
    shared.visiting = VisitingQueries(layout, shared.own.keys.block, G::kRows);
  }
  for (RingPlace<kStages> place;; place.advance()) {
    const int stage = place.stage;
    barrier_wait(&shared.free[stage], place.free());
    if (threadIdx.x == 0) fetch_queries<G>(shared, stage, maps, layout);
    __syncwarp();  // a named barrier is reached by whole warps
    named_barrier(1, G::kRows);
    const bool end = shared.kind[stage] == BlockKind::end;
    if (!end) describe_row<G>(shared, stage, layout, pointers);
    arrive_as_warp(&shared.filled[stage]);
    if (end) return;
  }
}

/// Scores [keys, rows] of pairs that the mask hides become -infinity. `first` is the warpgroup's
/// first key of the tile, `columns` what the rows see of it.
template <int kCount>
__device__ void mask_transposed(float (&s)[kCount], const VisibleColumns* columns, int first) {
  const int thread = static_cast<int>(threadIdx.x % kWarpgroup);
#pragma unroll
  for (int i = 0; i < kCount; i += 4)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const VisibleColumns seen = columns[fragment_column(thread, i + j)];
      const int key = first + fragment_row(thread, i + j);
      if (key < seen.begin || key >= seen.end) s[i + j] = -INFINITY;
    }
}

/// Scores become weights.
template <int kCount>
__device__ void weigh_transposed(float (&s)[kCount], const float* log2_sums, float factor) {
  const int thread = static_cast<int>(threadIdx.x % kWarpgroup);
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const auto sum = *reinterpret_cast<const float2*>(log2_sums + fragment_column(thread, i));
    s[i] = exp2_approximate(fmaf(s[i], factor, -sum.x));
    s[i + 1] = exp2_approximate(fmaf(s[i + 1], factor, -sum.y));
    s[i + 2] = exp2_approximate(fmaf(s[i + 2], factor, -sum.x));
    s[i + 3] = exp2_approximate(fmaf(s[i + 3], factor, -sum.y));
  }
}

/// ds = p (dp - delta), into dp. p is taken rounded, as it is multiplied by dout: there are no
/// registers to keep it in f32 beside dk and dv.
template <int kSteps>
__device__ void differentiate_transposed(float (&dp)[kSteps * 8], const uint32_t (&p)[kSteps][4],
                                         const float* deltas) {
  const int thread = static_cast<int>(threadIdx.x % kWarpgroup);
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int i = first_of_operand(step, r);
      const auto delta = *reinterpret_cast<const float2*>(deltas + fragment_column(thread, i));
      const float2 weight = unpack_bf16(p[step][r]);
      dp[i] = weight.x * (dp[i] - delta.x);
      dp[i + 1] = weight.y * (dp[i + 1] - delta.y);
    }
}

/// A consumer warpgroup with 64 keys of the tile from `first` on.
template <class G>
__device__ void sum_key_gradients(typename G::Shared& shared, float (&dk)[G::kWidth / 2],
                                  float (&dv)[G::kWidth / 2], int first, float factor) {
  constexpr int kWidth = G::kWidth;
  RingPlace<kStages> place;
  barrier_wait(&shared.keys_filled, 0);
  for (;; place.advance()) {
    const int stage = place.stage;
    barrier_wait(&shared.filled[stage], place.filled());
    if (shared.kind[stage] == BlockKind::end) return;
    const auto& q = shared.q[stage];
    const auto& dout = shared.dout[stage];
    uint32_t weights[G::kRows / 16][4];
    uint32_t dscores[G::kRows / 16][4];
    {
      float p[G::kRows / 2];
      wgmma_fence();
      multiply<kWidth, G::kKeys, G::kRows>(p, shared.k.by_rows(first), q.by_rows());
      wgmma_commit();
      wgmma_wait<0>();
      keep_registers(p);
      if (shared.kind[stage] == BlockKind::masked) mask_transposed(p, shared.columns[stage], first);
      weigh_transposed(p, shared.log2_sum[stage], factor);
      round_operand(weights, p);
    }
    float dp[G::kRows / 2];
    wgmma_fence();
    multiply<kWidth, G::kKeys, G::kRows>(dp, shared.v.by_rows(first), dout.by_rows());
    wgmma_commit();
    accumulate(dv, weights, dout.by_columns());
    wgmma_commit();
    wgmma_wait<1>();
    keep_registers(dp);
    differentiate_transposed(dp, weights, shared.delta[stage]);
    round_operand(dscores, dp);
    wgmma_fence();
    accumulate(dk, dscores, q.by_columns());
    wgmma_commit();
    wgmma_wait<0>();
    keep_registers(dk);
    keep_registers(dv);
    arrive_as_warp(&shared.free[stage]);
  }
}

template <class G>
__device__ void store_key_gradients(const float (&dk)[G::kWidth / 2],
                                    const float (&dv)[G::kWidth / 2], const AttentionLayout& layout,
                                    const AttentionBackwardPointers<BFloat16>& pointers,
                                    const KeyTile& own, int first) {
  const int thread = static_cast<int>(threadIdx.x % kWarpgroup);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = first + fragment_row(thread, half * 2);
    if (key >= own.keys.count()) continue;
    const int64_t index = layout.key_index(own.slot, own.pair, own.keys.row + key);
    store_fragment_row(pointers.dk + index, dk, half, static_cast<float>(layout.scale),
                       layout.head_dim);
    store_fragment_row(pointers.dv + index, dv, half, 1.0F, layout.head_dim);
  }
}

template <int kWidth>
__global__ void __launch_bounds__(hopper_threads(kThreads), 1)
    key_gradient_kernel(const __grid_constant__ BackwardMaps maps,
                        const __grid_constant__ AttentionLayout layout,
                        const AttentionBackwardPointers<BFloat16> pointers) {
  if (kHopperCode) {
    using G = KeyGradient<kWidth>;
    auto& shared = *dynamic_shared<typename G::Shared>();
    if (threadIdx.x == 0) {
      shared.own = most_seen_first(layout, blockIdx.x, G::kKeys);
      barrier_init(&shared.keys_filled, 1);
      for (int stage = 0; stage < kStages; ++stage) {
        barrier_init(&shared.filled[stage], G::kFillers);
        barrier_init(&shared.free[stage], kReaders);
      }
      barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < kWarpgroup) {
      lower_registers<kProducerRegisters>();
      if (threadIdx.x < G::kRows) fill_queries<G>(shared, maps, layout, pointers);
    } else {
      raise_registers<kConsumerRegisters>();
      const int first = static_cast<int>(threadIdx.x / kWarpgroup - 1) * kWarpgroupRows;
      float dk[kWidth / 2] = {};
      float dv[kWidth / 2] = {};
      sum_key_gradients<G>(shared, dk, dv, first, static_cast<float>(layout.scale) * kLog2E);
      store_key_gradients<G>(dk, dv, layout, pointers, shared.own, first);
    }
  }
}

template <int kWidth>
void launch_key_gradient(const AttentionLayout& layout,
                         const AttentionBackwardPointers<BFloat16>& pointers, cudaStream_t stream) {
  using G = KeyGradient<kWidth>;
  const int64_t tiles = num_key_tiles(layout, G::kKeys) * layout.key_copies;
  launch(key_gradient_kernel<kWidth>,
         {pairs_by_tiles(layout, tiles), dim3(kThreads), sizeof(typename G::Shared)}, stream,
         backward_maps(layout, pointers, G::kRows, G::kKeys), layout, pointers);
}

}  // namespace
}  // namespace phalanx::hopper_backward

namespace phalanx {

void attention_hopper_backward(const AttentionLayout& layout,
                               const AttentionBackwardPointers<BFloat16>& pointers,
                               cudaStream_t stream) {
  using namespace hopper_backward;  // NOLINT: one file's
  launch(gather_rows_kernel,
         one_thread_each(layout.num_pairs() * layout.rows() * layout.head_dim / 8), stream, layout,
         pointers.dq, pointers.dout);
  if (layout.head_dim <= 64) {
    launch_key_gradient<64>(layout, pointers, stream);
  } else {
    launch_key_gradient<128>(layout, pointers, stream);
  }
  make_query_gradient(layout, pointers, stream);
}

}  // namespace phalanx
