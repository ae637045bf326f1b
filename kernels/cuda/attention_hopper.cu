// Forward of attention on Hopper: softmax(q k^T * scale + mask) v with the online softmax, one tile
// of query rows per block of threads. A producer thread streams key and value tiles by TMA; each
// consumer warpgroup has 64 of the rows, its scores and sums in registers (the division of work of
// FlashAttention-3, Shah et al. 2024). Scores of the next keys are under way while the weights of
// these keys are multiplied by the values.
#include "kernels/cuda/attention_hopper.h"

#include "kernels/cuda/attention_hopper_tiles.h"
#include "kernels/cuda/launch.h"

namespace phalanx {
namespace {

/// Sizes for heads padded to kWidth. Registers: what consumers and producers keep of the 65,536,
/// counted in groups of 128 threads (PTX ISA, setmaxnreg).
template <int kPaddedWidth>
struct Forward {
  static constexpr int kWidth = kPaddedWidth;
  static constexpr int kKeys = 128;
  static constexpr int kConsumers = 2;
  static constexpr int kRows = kConsumers * kWarpgroupRows;
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
  static constexpr int kStages = 2;
  static constexpr int kConsumerRegisters = 216;
  static constexpr int kProducerRegisters = 72;

  struct Shared {
    SharedTile<kRows, kWidth> q;
    SharedTile<kKeys, kWidth> k[kStages], v[kStages];
    VisibleColumns columns[kStages][kRows];  // of k, if it is masked
    BlockKind kind[kStages];                 // of k
    PairTile tile;
    uint64_t q_filled, k_filled[kStages], k_free[kStages], v_filled[kStages], v_free[kStages];
  };
};

struct ForwardMaps {
  TensorMap q, k, v;
};

/// One thread.
template <class F>
__device__ void init_shared(typename F::Shared& shared, const AttentionLayout& layout) {
  constexpr int kFillers = kWarpgroup / kWarp;
  constexpr int kReaders = F::kConsumers * kWarpgroup / kWarp;
  shared.tile = longest_first(layout, blockIdx.x, F::kRows);
  barrier_init(&shared.q_filled, 1);
  for (int stage = 0; stage < F::kStages; ++stage) {
    barrier_init(&shared.k_filled[stage], kFillers);
    barrier_init(&shared.v_filled[stage], 1);
    barrier_init(&shared.k_free[stage], kReaders);
    barrier_init(&shared.v_free[stage], kReaders);
  }
  barrier_init_fence();
}

/// The producer warpgroup: thread 0 brings q, then every block of keys that the tile visits; each
/// thread finds what its row of the tile sees of a block, because consumers have no registers left
/// for it.
template <class F>
__device__ void produce(typename F::Shared& shared, const ForwardMaps& maps,
                        const AttentionLayout& layout) {
  static_assert(F::kRows == kWarpgroup);
  const bool leader = threadIdx.x == 0;
  const PairTile tile = shared.tile;
  const QueryRow row = query_row(layout, tile, static_cast<int>(threadIdx.x));
  if (leader) {
    barrier_arrive_expecting(&shared.q_filled, shared.q.kBytes);
    shared.q.load(maps.q, tile.rows.first, tile.pair, &shared.q_filled);
  }
  RingPlace<F::kStages> place;
  VisitedKeys visited(layout, tile.rows.tile, F::kKeys);
  KeyRows keys;
  while (visited.next(layout, tile.rows.tile, keys)) {
    const int stage = place.stage;
    const auto plane = key_plane(layout, keys, tile.pair);
    const bool masked = !keys.block.full || keys.count() != F::kKeys;
    barrier_wait(&shared.k_free[stage], place.free());
    if (masked) shared.columns[stage][threadIdx.x] = visible_columns(layout, keys.block, row);
    if (leader) {
      shared.kind[stage] = masked ? BlockKind::masked : BlockKind::full;
      barrier_expect(&shared.k_filled[stage], shared.k[stage].kBytes);
      shared.k[stage].load(maps.k, keys.row, plane, &shared.k_filled[stage]);
    }
    arrive_as_warp(&shared.k_filled[stage]);
    barrier_wait(&shared.v_free[stage], place.free());
    if (leader) {
      barrier_arrive_expecting(&shared.v_filled[stage], shared.v[stage].kBytes);
      shared.v[stage].load(maps.v, keys.row, plane, &shared.v_filled[stage]);
    }
    place.advance();
  }
  barrier_wait(&shared.k_free[place.stage], place.free());
  if (leader) shared.kind[place.stage] = BlockKind::end;
  arrive_as_warp(&shared.k_filled[place.stage]);
}

/// A thread's two rows: the largest score so far (not yet times `scale`), this thread's part of the
/// sum of the weights, and what older sums must be multiplied by.
struct RowState {
  float maximum[2] = {-INFINITY, -INFINITY};
  float total[2] = {0, 0};
  float rescale[2] = {0, 0};
};

/// The maximum over the four lanes that hold a row.
__device__ inline float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}
__device__ inline float row_sum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

/// Scores become weights 2^(factor (s - max)), factor = scale log2(e).
template <int kCount>
__device__ void weigh(float (&s)[kCount], RowState& state, float factor) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float before = state.maximum[half];
    float maximum = before;
#pragma unroll
    for (int i = half * 2; i < kCount; i += 4) maximum = fmaxf(maximum, fmaxf(s[i], s[i + 1]));
    maximum = row_max(maximum);
    // A row that has seen nothing keeps -infinity; 0 stands in for it, so that -infinity is not
    // subtracted from itself.
    const float base = maximum == -INFINITY ? 0.0F : maximum * factor;
    state.maximum[half] = maximum;
    state.rescale[half] = exp2_approximate(fmaf(before, factor, -base));
    float total = 0;
#pragma unroll
    for (int i = half * 2; i < kCount; i += 4) {
      s[i] = exp2_approximate(fmaf(s[i], factor, -base));
      s[i + 1] = exp2_approximate(fmaf(s[i + 1], factor, -base));
      total += s[i] + s[i + 1];
    }
    state.total[half] = fmaf(state.total[half], state.rescale[half], total);
  }
}

/// Scores of pairs that the mask hides become -infinity. `columns` are those of the warpgroup's
/// rows.
template <int kCount>
__device__ void mask_scores(float (&s)[kCount], const VisibleColumns* columns) {
  const int thread = static_cast<int>(threadIdx.x % kWarpgroup);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const VisibleColumns seen = columns[fragment_row(thread, half * 2)];
#pragma unroll
    for (int i = half * 2; i < kCount; i += 4)
#pragma unroll
      for (int j = i; j < i + 2; ++j) {
        const int column = fragment_column(thread, j);
        if (column < seen.begin || column >= seen.end) s[j] = -INFINITY;
      }
  }
}

template <int kCount>
__device__ void rescale(float (&o)[kCount], const RowState& state) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) o[i] *= state.rescale[i / 2 % 2];
}

/// out = o / total, lse = scale max + log(total); 0 and -infinity for rows that saw nothing.
template <int kCount>
__device__ void store_rows(const float (&o)[kCount], const RowState& state, BFloat16* out,
                           float* lse, const AttentionLayout& layout, const PairTile& tile,
                           int first) {
  const int thread = static_cast<int>(threadIdx.x % kWarpgroup);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = row_sum(state.total[half]);  // by all lanes, rows that are not there too
    const int row = first + fragment_row(thread, half * 2);
    if (row >= tile.rows.count) continue;
    const int64_t number = tile.rows.first + row;
    const float inverse = total == 0.0F ? 0.0F : 1.0F / total;
    BFloat16* target = out + layout.output_index(tile.pair, number);
    store_fragment_row(target, o, half, inverse, layout.head_dim);
    if (thread % 4 == 0)
      lse[tile.pair * layout.rows() + number] =
          total == 0.0F ? -INFINITY
                        : fmaf(state.maximum[half], static_cast<float>(layout.scale), logf(total));
  }
}

/// What a consumer warpgroup knows besides its registers.
template <class F>
struct Consumer {
  typename F::Shared& shared;
  int first;                       // row of the tile
  float factor;                    // of the scores: scale log2(e)
  RingPlace<F::kStages> k{}, v{};  // next tiles to read

  /// Waits for the next keys; false at the end.
  __device__ bool next_block() {
    barrier_wait(&shared.k_filled[k.stage], k.filled());
    return shared.kind[k.stage] != BlockKind::end;
  }
  template <int kCount>
  __device__ void begin_scores(float (&s)[kCount]) {
    wgmma_fence();
    multiply<F::kWidth, F::kRows, F::kKeys>(s, shared.q.by_rows(first),
                                            shared.k[k.stage].by_rows());
    wgmma_commit();
  }
  template <int kCount, int kSteps>
  __device__ void begin_sums(float (&o)[kCount], const uint32_t (&p)[kSteps][4]) {
    barrier_wait(&shared.v_filled[v.stage], v.filled());
    wgmma_fence();
    accumulate(o, p, shared.v[v.stage].by_columns());
    wgmma_commit();
  }
  /// The scores are there: their keys may go, and they become weights.
  template <int kCount>
  __device__ void end_scores(float (&s)[kCount], RowState& state) {
    keep_registers(s);
    if (shared.kind[k.stage] == BlockKind::masked) mask_scores(s, &shared.columns[k.stage][first]);
    arrive_as_warp(&shared.k_free[k.stage]);
    k.advance();
    weigh(s, state, factor);
  }
  template <int kCount>
  __device__ void end_sums(float (&o)[kCount]) {
    keep_registers(o);
    arrive_as_warp(&shared.v_free[v.stage]);
    v.advance();
  }
};

template <class F>
__device__ void consume(Consumer<F> consumer, const AttentionLayout& layout, BFloat16* out,
                        float* lse) {
  float s[F::kKeys / 2];
  float o[F::kWidth / 2] = {};
  uint32_t p[F::kKeys / 16][4];
  RowState state;
  barrier_wait(&consumer.shared.q_filled, 0);
  if (consumer.next_block()) {
    consumer.begin_scores(s);
    wgmma_wait<0>();
    consumer.end_scores(s, state);
    round_operand(p, s);
    while (consumer.next_block()) {
      consumer.begin_scores(s);
      consumer.begin_sums(o, p);
      wgmma_wait<1>();
      consumer.end_scores(s, state);
      wgmma_wait<0>();
      consumer.end_sums(o);
      rescale(o, state);
      round_operand(p, s);
    }
    consumer.begin_sums(o, p);
    wgmma_wait<0>();
    consumer.end_sums(o);
  }
  store_rows(o, state, out, lse, layout, consumer.shared.tile, consumer.first);
}

template <int kWidth>
__global__ void __launch_bounds__(Forward<kWidth>::kThreads, 1)
    attention_forward_kernel(const __grid_constant__ ForwardMaps maps,
                             const __grid_constant__ AttentionLayout layout, BFloat16* out,
                             float* lse) {
  if constexpr (kHopperCode) {
    using F = Forward<kWidth>;
    auto& shared = *dynamic_shared<typename F::Shared>();
    if (threadIdx.x == 0) init_shared<F>(shared, layout);
    __syncthreads();
    if (threadIdx.x < kWarpgroup) {
      lower_registers<F::kProducerRegisters>();
      produce<F>(shared, maps, layout);
    } else {
      raise_registers<F::kConsumerRegisters>();
      const int first = static_cast<int>(threadIdx.x / kWarpgroup - 1) * kWarpgroupRows;
      consume<F>({shared, first, static_cast<float>(layout.scale) * kLog2E}, layout, out, lse);
    }
  }
}

template <int kWidth>
void forward(const Tensor& out, const Tensor& lse, const AttentionInputs& inputs,
             const AttentionLayout& layout, cudaStream_t stream) {
  using F = Forward<kWidth>;
  const ForwardMaps maps{query_map(inputs.q, F::kRows), key_map(inputs.k, F::kKeys),
                         key_map(inputs.v, F::kKeys)};
  const int64_t blocks = num_query_tiles(layout, F::kRows) * layout.num_pairs();
  launch(attention_forward_kernel<kWidth>,
         {dim3(static_cast<unsigned>(blocks)), dim3(F::kThreads), sizeof(typename F::Shared)},
         stream, maps, layout, out.as<BFloat16>(), lse.as<float>());
}

}  // namespace

void hopper_attention_forward(const Tensor& out, const Tensor& lse, const AttentionInputs& inputs,
                              const AttentionLayout& layout, cudaStream_t stream) {
  if (layout.head_dim <= 64) {
    forward<64>(out, lse, inputs, layout, stream);
  } else {
    forward<128>(out, lse, inputs, layout, stream);
  }
}

}  // namespace phalanx
