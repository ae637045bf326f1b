// Forward of attention on Hopper: softmax(q k^T * scale + mask) v with the online softmax, one tile
// of query rows per block of threads. A producer thread streams key and value tiles by TMA; each
// consumer warpgroup has 64 of the rows, its scores and sums in registers (the division of work of
// FlashAttention-3, Shah et al. 2024). Scores of the next keys are under way while the weights of
// these keys are multiplied by the values.
#include "kernels/cuda/attention_hopper_keys.h"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/launch.h"

namespace phalanx {
namespace {

/// Sizes for heads padded to kWidth. Registers: what consumers and producers keep of the 65,536,
/// counted in groups of 128 threads (PTX ISA, setmaxnreg).
template <int kPaddedWidth, int kBlockKeys>
struct Forward {
  static constexpr int kWidth = kPaddedWidth;
  static constexpr int kKeys = kBlockKeys;
  static constexpr int kConsumers = 2;
  static constexpr int kRows = kConsumers * kWarpgroupRows;
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
  static constexpr int kStages = 2;
  static constexpr int kConsumerRegisters = 216;
  static constexpr int kProducerRegisters = 72;

  struct Shared {
    SharedTile<kRows, kWidth> q;
    KeyRing<kRows, kKeys, kWidth, kStages> ring;
    uint64_t q_filled;
  };
};

struct ForwardMaps {
  TensorMap q, k, v;
};

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
    const float base = maximum == -INFINITY ? 0.0F : maximum;
    const float offset = base * factor;
    state.maximum[half] = maximum;
    state.rescale[half] = exp2_approximate((before - base) * factor);  // exactly 1 if it stays
    float total = 0;
#pragma unroll
    for (int i = half * 2; i < kCount; i += 4) {
      s[i] = exp2_approximate(fmaf(s[i], factor, -offset));
      s[i + 1] = exp2_approximate(fmaf(s[i + 1], factor, -offset));
      total += s[i] + s[i + 1];
    }
    state.total[half] = fmaf(state.total[half], state.rescale[half], total);
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

/// s = q k^T of the warpgroup's rows and the ring's next keys.
template <class F, class Reader, int kCount>
__device__ void begin_scores(float (&s)[kCount], const typename F::Shared& shared, Reader& reader) {
  wgmma_fence();
  multiply<F::kWidth, F::kRows, F::kKeys>(s, shared.q.by_rows(reader.first),
                                          reader.keys().by_rows());
  wgmma_commit();
}
/// Once they are there, scores become weights, and their keys may go.
template <class Reader, int kCount>
__device__ void end_scores(float (&s)[kCount], RowState& state, Reader& reader, float factor) {
  keep_registers(s);
  reader.mask(s);
  reader.release_keys();
  weigh(s, state, factor);
}
/// o += p v of the ring's next values.
template <class Reader, int kCount, int kSteps>
__device__ void begin_sums(float (&o)[kCount], const uint32_t (&p)[kSteps][4], Reader& reader) {
  reader.wait_for_values();
  wgmma_fence();
  accumulate(o, p, reader.values().by_columns());
  wgmma_commit();
}
template <class Reader, int kCount>
__device__ void end_sums(float (&o)[kCount], Reader& reader) {
  keep_registers(o);
  reader.release_values();
}

/// A consumer warpgroup, whose first row of the tile is `first`.
template <class F>
__device__ void consume(typename F::Shared& shared, const AttentionLayout& layout, BFloat16* out,
                        float* lse, int first) {
  const float factor = static_cast<float>(layout.scale) * kLog2E;
  float s[F::kKeys / 2];
  float o[F::kWidth / 2] = {};
  uint32_t p[F::kKeys / 16][4];
  RowState state;
  KeyReader<decltype(shared.ring)> reader{shared.ring, first};
  barrier_wait(&shared.q_filled, 0);
  if (reader.next_block()) {
    begin_scores<F>(s, shared, reader);
    wgmma_wait<0>();
    end_scores(s, state, reader, factor);
    round_operand(p, s);
    while (reader.next_block()) {
      begin_scores<F>(s, shared, reader);
      begin_sums(o, p, reader);
      wgmma_wait<1>();
      end_scores(s, state, reader, factor);
      wgmma_wait<0>();
      end_sums(o, reader);
      rescale(o, state);
      round_operand(p, s);
    }
    begin_sums(o, p, reader);
    wgmma_wait<0>();
    end_sums(o, reader);
  }
  store_rows(o, state, out, lse, layout, shared.ring.tile, first);
}

template <class F>
__global__ void __launch_bounds__(hopper_threads(F::kThreads), 1)
    attention_forward_kernel(const __grid_constant__ ForwardMaps maps,
                             const __grid_constant__ AttentionLayout layout, BFloat16* out,
                             float* lse) {
  if (kHopperCode) {
    auto& shared = *dynamic_shared<typename F::Shared>();
    if (threadIdx.x == 0) {
      shared.ring.init(layout, F::kConsumers * kWarpgroup / kWarp);
      barrier_init(&shared.q_filled, 1);
      barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < kWarpgroup) {
      lower_registers<F::kProducerRegisters>();
      if (threadIdx.x == 0) {
        const PairTile& tile = shared.ring.tile;
        barrier_arrive_expecting(&shared.q_filled, shared.q.kBytes);
        shared.q.load(maps.q, tile.rows.first, tile.pair, &shared.q_filled);
      }
      shared.ring.fill(layout, maps.k, maps.v);
    } else {
      raise_registers<F::kConsumerRegisters>();
      const int first = static_cast<int>(threadIdx.x / kWarpgroup - 1) * kWarpgroupRows;
      consume<F>(shared, layout, out, lse, first);
    }
  }
}

template <class F>
void forward(const AttentionLayout& layout, const AttentionForwardPointers<BFloat16>& pointers,
             cudaStream_t stream) {
  const ForwardMaps maps{query_map(layout, pointers.q, F::kRows),
                         key_map(layout, pointers.k, F::kKeys),
                         key_map(layout, pointers.v, F::kKeys)};
  launch(attention_forward_kernel<F>,
         {pairs_by_tiles(layout, num_query_tiles(layout, F::kRows)), dim3(F::kThreads),
          sizeof(typename F::Shared)},
         stream, maps, layout, pointers.out, pointers.lse);
}

}  // namespace

bool attention_hopper_is_there() {
  static const bool is_there = [] {
    int device = 0;
    int major = 0;
    cuda_check(cudaGetDevice(&device), "cudaGetDevice");
    cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
               "cudaDeviceGetAttribute");
    if (major != 9) return false;
    cudaFuncAttributes code{};  // hopper_threads() marks code that cannot be used
    cuda_check(cudaFuncGetAttributes(&code, attention_forward_kernel<Forward<128, 128>>),
               "cudaFuncGetAttributes");
    return code.maxThreadsPerBlock >= Forward<128, 128>::kThreads;
  }();
  return is_there;
}

void attention_hopper_forward(const AttentionLayout& layout,
                              const AttentionForwardPointers<BFloat16>& pointers,
                              cudaStream_t stream) {
  // Blocks of keys end where blocks of a pattern do: wider ones would be half empty.
  const bool narrow = layout.mask.pattern != KeyPattern::full && layout.mask.block < 128;
  if (layout.head_dim <= 64 && narrow) return forward<Forward<64, 64>>(layout, pointers, stream);
  if (layout.head_dim <= 64) return forward<Forward<64, 128>>(layout, pointers, stream);
  if (narrow) return forward<Forward<128, 64>>(layout, pointers, stream);
  forward<Forward<128, 128>>(layout, pointers, stream);
}

}  // namespace phalanx
