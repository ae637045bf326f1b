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

/// Scores of keys that the lane's rows do not see become -infinity.
__device__ inline void hide_scores(float (&scores)[kMmaKeys / 8][4], const SeenKeyRange* seen) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const SeenKeyRange range = seen[lane / 4 + 8 * half];
#pragma unroll
    for (int column = 0; column < kMmaKeys / 8; ++column) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = column * 8 + lane % 4 * 2 + i;
        if (key < range.begin || key >= range.end) scores[column][2 * half + i] = -INFINITY;
      }
    }
  }
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

/// Starts the copies of a block of keys and values.
template <int kWidth>
__device__ void copy_keys_async(ForwardMemory<kWidth>& memory, int stage,
                                const AttentionLayout& layout,
                                const AttentionForwardPointers<BFloat16>& at, int64_t pair,
                                const KeyRows& keys) {
  const int64_t index = layout.key_index(keys.block.copy - layout.first_key_copy, pair, keys.row);
  copy_rows_async<kWidth, kMmaKeys, kThreads>(memory.k[stage], keys.count(), at.k + index);
  copy_rows_async<kWidth, kMmaKeys, kThreads>(memory.v[stage], keys.count(), at.v + index);
}

__device__ inline bool is_masked(const KeyRows& keys) {
  return !keys.block.full || keys.count() < kMmaKeys;
}

/// What each row of the tile sees of a masked block, a thread per row.
template <int kTileRows>
__device__ void find_seen(SeenKeyRange* seen, const AttentionLayout& layout, int64_t pair,
                          const TileRows& rows, const KeyRows& keys) {
  const int i = threadIdx.x;
  if (i >= kTileRows || !is_masked(keys)) return;
  PositionRange range;
  if (i < rows.count) {
    const AttentionRow row = rows.row(layout, i);
    const int64_t document = layout.document_of(pair, row.position - rows.shift);
    range = visible_in_block(layout.mask, keys.block, row, document);
  }
  seen[i] = {static_cast<int>(range.begin), static_cast<int>(range.end)};
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ AttentionLayout layout,
                   const AttentionForwardPointers<BFloat16> at) {
  auto& memory = *dynamic_shared<ForwardMemory<kWidth>>();
  const int64_t pair = blockIdx.x % layout.num_pairs();
  // Last tiles first: they see the most keys, and the small ones fill the gaps at the end.
  const int64_t number = (gridDim.x - 1 - blockIdx.x) / layout.num_pairs();
  const TileRows rows = query_tile(layout, pair, number, kRows);
  const int64_t first = pair * layout.rows() + rows.first;
  const int lane = threadIdx.x % kWarp;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * kWarpRows;
  const auto factor = static_cast<float>(layout.scale * kAttentionLog2E);

  VisitedKeys blocks(layout, rows.tile, kMmaKeys);
  KeyRows keys;
  bool more = blocks.next(layout, rows.tile, keys);
  copy_rows_async<kWidth, kRows, kThreads>(memory.q, rows.count, at.q + first * kWidth);
  if (more) {
    copy_keys_async(memory, 0, layout, at, pair, keys);
    find_seen<kRows>(memory.seen[0], layout, pair, rows, keys);
  }
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  uint32_t queries[kWidth / 16][4];
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step)
    load_rows_fragment<kWidth>(queries[step], memory.q, warp_row, step);

  OnlineSoftmax softmax;
  float sums[kWidth / 8][4] = {};
  for (int stage = 0; more; stage ^= 1) {
    const bool masked = is_masked(keys);
    more = blocks.next(layout, rows.tile, keys);
    if (more) copy_keys_async(memory, stage ^ 1, layout, at, pair, keys);
    copy_async_commit();
    float scores[kMmaKeys / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step)
      add_rows_product_step<kWidth, kMmaKeys>(scores, queries[step], memory.k[stage], 0, step);
    if (masked) hide_scores(scores, memory.seen[stage] + warp_row);
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
    if (more) find_seen<kRows>(memory.seen[stage ^ 1], layout, pair, rows, keys);
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
