// Forward of attention in bf16 by mma.sync: FlashAttention-2 (Dao 2023) over PHD's rows. A block
// has 128 consecutive rows of [Sq, Kq*R], in which all copies and heads of a position are
// neighbours, so that each original key is fetched once for all of them; the hidden band joins the
// same online softmax. Blocks of keys arrive by cp.async while the one before is computed.
#include "kernels/cuda/attention_mma.h"
#include "kernels/cuda/launch.h"

namespace phalanx {
namespace {

constexpr int kWarps = 8;
constexpr int kRows = kWarps * kWarpRows;
constexpr int kThreads = kWarps * kWarp;

template <int kWidth>
struct ForwardMemory {
  BFloat16 q[kRows * kWidth];  // later the output
  BFloat16 k[2][kMmaKeys * kWidth];
  BFloat16 v[2][kMmaKeys * kWidth];
  SeenKeyRange seen[2][kRows];
  QueryTileSchedule schedule;
};

/// The online softmax of a lane's two rows. Maxima are of scores not yet times `scale`.
struct OnlineSoftmax {
  float maximum[2] = {-INFINITY, -INFINITY};
  float total[2] = {0.0F, 0.0F};  // this lane's part
};

/// The larger value of a row's four lanes, on all of them.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

/// Scores become weights 2^(factor (score - maximum)); returns in `rescale` what older sums are to
/// be multiplied by.
__device__ inline void softmax_block(float (&scores)[kMmaKeys / 8][4], OnlineSoftmax& softmax,
                                     float (&rescale)[2], float factor) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float maximum = softmax.maximum[half];
#pragma unroll
    for (auto& score : scores)
      maximum = fmaxf(maximum, fmaxf(score[2 * half], score[2 * half + 1]));
    maximum = quad_max(maximum);
    // 0 stands in for a maximum of -infinity, so that it is not subtracted from itself.
    const float base = maximum == -INFINITY ? 0.0F : maximum * factor;
    rescale[half] = exp2_approximate(softmax.maximum[half] * factor - base);
    softmax.maximum[half] = maximum;
    float sum = 0.0F;
#pragma unroll
    for (auto& score : scores) {
      score[2 * half] = exp2_approximate(score[2 * half] * factor - base);
      score[2 * half + 1] = exp2_approximate(score[2 * half + 1] * factor - base);
      sum += score[2 * half] + score[2 * half + 1];
    }
    softmax.total[half] = softmax.total[half] * rescale[half] + sum;
  }
}

/// Starts the copies of a block of keys, and finds out what the rows see of it, a thread per row.
template <int kWidth>
__device__ void fetch_block(ForwardMemory<kWidth>& memory, int stage, const AttentionLayout& layout,
                            const AttentionForwardPointers<BFloat16>& at, int64_t pair,
                            const QueryTileSchedule::Block& block) {
  copy_keys_async<kWidth, kThreads>(memory.k[stage], memory.v[stage], layout, at, pair, block.keys);
  if (block.masked && threadIdx.x < kRows)
    memory.seen[stage][threadIdx.x] =
        seen_keys(layout, pair, memory.schedule.rows, block.keys.block, threadIdx.x);
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ AttentionLayout layout,
                   const AttentionForwardPointers<BFloat16> at) {
  auto& memory = *dynamic_shared<ForwardMemory<kWidth>>();
  const int64_t pair = blockIdx.x % layout.num_pairs();
  // Last tiles first: they see the most keys, and the small ones fill the gaps at the end.
  const int64_t number = (gridDim.x - 1 - blockIdx.x) / layout.num_pairs();
  QueryTileSchedule& schedule = memory.schedule;
  if (threadIdx.x == 0) schedule.begin(layout, pair, number, kRows);
  __syncthreads();
  const TileRows& rows = schedule.rows;
  const int64_t first = pair * layout.rows() + rows.first;
  const int lane = threadIdx.x % kWarp;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * kWarpRows;
  const auto factor = static_cast<float>(layout.scale * kAttentionLog2E);
  copy_rows_async<kWidth, kRows, kThreads>(memory.q, rows.count, at.q + first * kWidth);
  if (schedule.blocks[0].exists) fetch_block(memory, 0, layout, at, pair, schedule.blocks[0]);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  uint32_t queries[kWidth / 16][4];
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step)
    load_rows_fragment<kWidth>(queries[step], memory.q, warp_row, step);

  OnlineSoftmax softmax;
  float sums[kWidth / 8][4] = {};
  int current = 0;
  for (int stage = 0; schedule.blocks[current].exists; stage ^= 1) {
    const int following = current == 2 ? 0 : current + 1;
    const bool masked = schedule.blocks[current].masked;
    if (schedule.blocks[following].exists)
      fetch_block(memory, stage ^ 1, layout, at, pair, schedule.blocks[following]);
    copy_async_commit();
    if (threadIdx.x == 0) schedule.advance(layout, following == 2 ? 0 : following + 1);
    float scores[kMmaKeys / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step)
      add_rows_product_step<kWidth, kMmaKeys>(scores, queries[step], memory.k[stage], 0, step);
    if (masked) hide_scores<kMmaKeys>(scores, memory.seen[stage] + warp_row, 0);
    float rescale[2];
    softmax_block(scores, softmax, rescale, factor);
#pragma unroll
    for (auto& sum : sums) {
      sum[0] *= rescale[0];
      sum[1] *= rescale[0];
      sum[2] *= rescale[1];
      sum[3] *= rescale[1];
    }
    uint32_t weights[kMmaKeys / 16][4];
    pack_fragments<kMmaKeys>(weights, scores);
    add_weighted_rows<kWidth, kMmaKeys>(sums, weights, memory.v[stage], 0);
    current = following;
    copy_async_wait<0>();
    __syncthreads();
  }

  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = quad_sum(softmax.total[half]);
    const bool empty = total == 0.0F;
    inverse[half] = empty ? 0.0F : 1.0F / total;
    const int row = warp_row + lane / 4 + 8 * half;
    if (lane % 4 == 0 && row < rows.count)
      at.lse[first + row] =
          empty ? -INFINITY
                : softmax.maximum[half] * static_cast<float>(layout.scale) + logf(total);
  }
  stage_rows<kWidth>(memory.q, warp_row, sums, inverse[0], inverse[1]);
  const OutputRows out(layout, pair, rows.first);
  write_rows<kWidth>(at.out, memory.q, warp_row, rows.count,
                     [&](int row) { return out.index(layout, static_cast<uint32_t>(row)); });
}

}  // namespace

void attention_mma_forward(const AttentionLayout& layout,
                           const AttentionForwardPointers<BFloat16>& pointers,
                           cudaStream_t stream) {
  const int64_t blocks = num_query_tiles(layout, kRows) * layout.num_pairs();
  dispatch_width(layout.head_dim, [&]<int kWidth>() {
    LaunchShape shape = one_thread_each(blocks * kThreads, kThreads);
    shape.shared_bytes = sizeof(ForwardMemory<kWidth>);
    launch(forward_kernel<kWidth>, shape, stream, layout, pointers);
  });
}

}  // namespace phalanx
