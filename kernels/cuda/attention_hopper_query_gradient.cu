// The second pass of the backward of attention on Hopper (attention_hopper_backward.cu): dq. A tile
// of query rows visits keys as in the forward, dscores go from registers into the product with k.
#include "kernels/cuda/attention_hopper_backward.h"
#include "kernels/cuda/launch.h"

namespace phalanx::hopper_backward {
namespace {

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
    wgmma_fence();
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
  if (kHopperCode) {
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
void launch_query_gradient(const AttentionLayout& layout,
                           const AttentionBackwardPointers<BFloat16>& pointers,
                           cudaStream_t stream) {
  using G = QueryGradient<kWidth>;
  launch(query_gradient_kernel<kWidth>,
         {pairs_by_tiles(layout, num_query_tiles(layout, G::kRows)), dim3(kThreads),
          sizeof(typename G::Shared)},
         stream, backward_maps(layout, pointers, G::kRows, G::kKeys), layout, pointers);
}

}  // namespace

void make_query_gradient(const AttentionLayout& layout,
                         const AttentionBackwardPointers<BFloat16>& pointers, cudaStream_t stream) {
  if (layout.head_dim <= 64) {
    launch_query_gradient<64>(layout, pointers, stream);
  } else {
    launch_query_gradient<128>(layout, pointers, stream);
  }
}

}  // namespace phalanx::hopper_backward
