// Backward of attention on Hopper. With P = exp(scale q k^T - lse) and dS = P * (dout v^T - delta):
// dv = P^T dout,  dq = scale dS k,  dk = scale dS^T q. Two passes, each deterministic because a
// block of threads owns what it sums: tiles of keys visit the query tiles that see them (dk, dv),
// tiles of queries visit keys (dq). Scores are made twice, seven products instead of five, because
// dq summed from the key tiles would need an order among blocks or float atomics.
//
// dout is laid out as q before, in the memory of dq, so that TMA can bring its rows; the second
// pass reads a tile's dout there before it writes the same rows of dq.
#include "kernels/cuda/attention_hopper_keys.h"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/launch.h"

namespace phalanx {
namespace {

constexpr int kConsumers = 2;
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kReaders = kConsumers * kWarpgroup / kWarp;
constexpr int kStages = 2;
constexpr int kConsumerRegisters = 216;  // of 504 for three warpgroups (PTX ISA, setmaxnreg)
constexpr int kProducerRegisters = 72;

/// lse in base 2. A row that saw nothing gets +infinity, so that its weights are 0.
__device__ inline float log2_sum(float lse) {
  return lse == -INFINITY ? INFINITY : lse * kLog2E;
}

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

struct BackwardMaps {
  TensorMap q, dout, k, v;
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
  if constexpr (kHopperCode) {
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

// --- dq ---

template <int kPaddedWidth>
struct QueryGradient {
  static constexpr int kWidth = kPaddedWidth;
  static constexpr int kKeys = 64;
  static constexpr int kRows = kConsumers * kWarpgroupRows;

  struct Shared {
    SharedTile<kRows, kWidth> q, dout;
    KeyRing<kRows, kKeys, kWidth, kStages> ring;
    uint64_t rows_filled;
  };
};

/// lse in base 2 and delta of a thread's two rows.
struct RowSums {
  float log2_sum[2] = {INFINITY, INFINITY};
  float delta[2] = {0, 0};
};

__device__ inline RowSums row_sums(const AttentionLayout& layout, const PairTile& tile, int first,
                                   const AttentionBackwardPointers<BFloat16>& pointers) {
  const int thread = static_cast<int>(threadIdx.x % kWarpgroup);
  RowSums sums;
  for (int half = 0; half < 2; ++half) {
    const int row = first + fragment_row(thread, half * 2);
    if (row >= tile.rows.count) continue;
    const int64_t index = tile.pair * layout.rows() + tile.rows.first + row;
    sums.log2_sum[half] = log2_sum(pointers.lse[index]);
    sums.delta[half] = pointers.delta[index];
  }
  return sums;
}

/// A consumer warpgroup with 64 rows of the tile.
template <class G, class Reader>
__device__ void sum_query_gradients(typename G::Shared& shared, float (&dq)[G::kWidth / 2],
                                    Reader& reader, const RowSums& sums, float factor) {
  barrier_wait(&shared.rows_filled, 0);
  while (reader.next_block()) {
    float p[G::kKeys / 2];
    float dp[G::kKeys / 2];
    uint32_t operand[G::kKeys / 16][4];
    wgmma_fence();
    multiply<G::kWidth, G::kRows, G::kKeys>(p, shared.q.by_rows(reader.first),
                                            reader.keys().by_rows());
    wgmma_commit();
    reader.wait_for_values();
    multiply<G::kWidth, G::kRows, G::kKeys>(dp, shared.dout.by_rows(reader.first),
                                            reader.values().by_rows());
    wgmma_commit();
    wgmma_wait<1>();
    keep_registers(p);
    reader.mask(p);
#pragma unroll
    for (int i = 0; i < G::kKeys / 2; ++i)
      p[i] = exp2_approximate(fmaf(p[i], factor, -sums.log2_sum[i / 2 % 2]));
    wgmma_wait<0>();
    keep_registers(dp);
    reader.release_values();
#pragma unroll
    for (int i = 0; i < G::kKeys / 2; ++i) dp[i] = p[i] * (dp[i] - sums.delta[i / 2 % 2]);
    round_operand(operand, dp);
    wgmma_fence();
    accumulate(dq, operand, reader.keys().by_columns());
    wgmma_commit();
    wgmma_wait<0>();
    keep_registers(dq);
    reader.release_keys();
  }
}

template <int kWidth>
__global__ void __launch_bounds__(hopper_threads(kThreads), 1)
    query_gradient_kernel(const __grid_constant__ BackwardMaps maps,
                          const __grid_constant__ AttentionLayout layout,
                          const AttentionBackwardPointers<BFloat16> pointers) {
  if constexpr (kHopperCode) {
    using G = QueryGradient<kWidth>;
    auto& shared = *dynamic_shared<typename G::Shared>();
    if (threadIdx.x == 0) {
      shared.ring.init(layout, kReaders);
      barrier_init(&shared.rows_filled, 1);
      barrier_init_fence();
    }
    __syncthreads();
    const PairTile& tile = shared.ring.tile;
    if (threadIdx.x < kWarpgroup) {
      lower_registers<kProducerRegisters>();
      if (threadIdx.x == 0) {
        barrier_arrive_expecting(&shared.rows_filled, shared.q.kBytes + shared.dout.kBytes);
        shared.q.load(maps.q, tile.rows.first, tile.pair, &shared.rows_filled);
        shared.dout.load(maps.dout, tile.rows.first, tile.pair, &shared.rows_filled);
      }
      shared.ring.fill(layout, maps.k, maps.v);
    } else {
      raise_registers<kConsumerRegisters>();
      const int first = static_cast<int>(threadIdx.x / kWarpgroup - 1) * kWarpgroupRows;
      float dq[kWidth / 2] = {};
      KeyReader<decltype(shared.ring)> reader{shared.ring, first};
      sum_query_gradients<G>(shared, dq, reader, row_sums(layout, tile, first, pointers),
                             static_cast<float>(layout.scale) * kLog2E);
      const int thread = static_cast<int>(threadIdx.x % kWarpgroup);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first + fragment_row(thread, half * 2);
        const int64_t index = tile.pair * layout.rows() + tile.rows.first + row;
        if (row < tile.rows.count)
          store_fragment_row(pointers.dq + index * layout.head_dim, dq, half,
                             static_cast<float>(layout.scale), layout.head_dim);
      }
    }
  }
}

template <int kWidth>
void backward(const AttentionLayout& layout, const AttentionBackwardPointers<BFloat16>& pointers,
              cudaStream_t stream) {
  using Keys = KeyGradient<kWidth>;
  using Queries = QueryGradient<kWidth>;
  const auto maps = [&](int rows, int keys) -> BackwardMaps {
    return {query_map(layout, pointers.q, rows), query_map(layout, pointers.dq, rows),
            key_map(layout, pointers.k, keys), key_map(layout, pointers.v, keys)};
  };
  launch(gather_rows_kernel,
         one_thread_each(layout.num_pairs() * layout.rows() * layout.head_dim / 8), stream, layout,
         pointers.dq, pointers.dout);
  const int64_t key_tiles = num_key_tiles(layout, Keys::kKeys) * layout.key_copies;
  launch(key_gradient_kernel<kWidth>,
         {pairs_by_tiles(layout, key_tiles), dim3(kThreads), sizeof(typename Keys::Shared)}, stream,
         maps(Keys::kRows, Keys::kKeys), layout, pointers);
  launch(query_gradient_kernel<kWidth>,
         {pairs_by_tiles(layout, num_query_tiles(layout, Queries::kRows)), dim3(kThreads),
          sizeof(typename Queries::Shared)},
         stream, maps(Queries::kRows, Queries::kKeys), layout, pointers);
}

}  // namespace

void attention_hopper_backward(const AttentionLayout& layout,
                               const AttentionBackwardPointers<BFloat16>& pointers,
                               cudaStream_t stream) {
  if (layout.head_dim <= 64) {
    backward<64>(layout, pointers, stream);
  } else {
    backward<128>(layout, pointers, stream);
  }
}

}  // namespace phalanx
