// Attention for any head dim and any type of float, in plain CUDA: a warp per query row in the
// forward and for dq, a warp per key for dk and dv. Lanes are 32 keys (or query rows) while scores
// are made and the D columns while values are summed. No atomics: the same bits on every run.
#include <limits>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/reduce.h"

namespace phalanx {
namespace {

constexpr int kBlockWarps = 4;

template <class Real>
__device__ Real exp2_of(Real x) {
  if constexpr (std::is_same_v<Real, float>) {
    return exp2f(x);
  } else {
    return exp2(x);
  }
}

/// This warp's number among all of the grid.
__device__ int64_t warp_number() {
  return int64_t{blockIdx.x} * kBlockWarps + threadIdx.x / kWarp;
}

/// This warp's piece of the block's shared memory.
template <class Real>
__device__ Real* warp_memory(int64_t count) {
  return dynamic_shared<Real>() + threadIdx.x / kWarp * count;
}

/// target = source widened, or zeros if source is null.
template <class Real, class T>
__device__ void load_row(Real* target, const T* source, int64_t count) {
  for (int64_t d = threadIdx.x % kWarp; d < count; d += kWarp)
    target[d] = source == nullptr ? Real(0) : static_cast<Real>(source[d]);
}

/// target = factor * source, rounded to T.
template <class Real, class T>
__device__ void store_row(T* target, const Real* source, Real factor, int64_t count) {
  for (int64_t d = threadIdx.x % kWarp; d < count; d += kWarp)
    target[d] = round_to<T>(source[d] * factor);
}

template <class Real, class T>
__device__ Real dot(const Real* a, const T* b, int64_t count) {
  Real sum = 0;
  for (int64_t d = 0; d < count; ++d) sum += a[d] * static_cast<Real>(b[d]);
  return sum;
}

/// Rows of [Sk] that one block of keys has in memory, and which of them a query row sees.
struct SeenKeys {
  int64_t index;  // first element of the block in k and v
  PositionRange range;

  __device__ SeenKeys(const AttentionLayout& layout, const TileRows& row, int64_t pair,
                      const KeyRows& keys)
      : index(layout.key_index(keys.block.copy - layout.first_key_copy, pair, keys.row)),
        range{0, keys.count()} {
    if (keys.block.full) return;
    const int64_t document = row.tile.first_document;
    range = visible_in_block(layout.mask, keys.block, row.row(layout, 0), document);
  }
  __device__ bool sees(int64_t key) const { return key >= range.begin && key < range.end; }
};

/// Online softmax (Milakov & Gimelshein 2018) over blocks of 32 keys, one per lane.
template <class T>
__global__ void __launch_bounds__(kBlockWarps* kWarp, 4)
    forward_kernel(const __grid_constant__ AttentionLayout layout,
                   const AttentionForwardPointers<T> at) {
  using Real = Accumulator<T>;
  const int64_t number = warp_number();
  if (number >= layout.num_pairs() * layout.rows()) return;
  const int64_t lane = threadIdx.x % kWarp;
  const int64_t pair = number / layout.rows();
  const int64_t width = layout.head_dim;
  const TileRows row = query_tile(layout, pair, number % layout.rows(), 1);
  const Real factor = static_cast<Real>(layout.scale * kAttentionLog2E);
  const Real lowest = -std::numeric_limits<Real>::infinity();
  Real* query = warp_memory<Real>(2 * width + kWarp);
  Real* sums = query + width;
  Real* weights = sums + width;
  load_row(query, at.q + number * width, width);
  load_row(sums, static_cast<const T*>(nullptr), width);
  __syncwarp();

  Real maximum = lowest;
  Real total = 0;
  VisitedKeys blocks(layout, row.tile, kWarp);
  KeyRows keys;
  while (blocks.next(layout, row.tile, keys)) {
    const SeenKeys seen(layout, row, pair, keys);
    const bool sees = seen.sees(lane);
    const Real score = sees ? dot(query, at.k + seen.index + lane * width, width) : lowest;
    const Real block_maximum = warp_max(score);
    const Real new_maximum = maximum > block_maximum ? maximum : block_maximum;
    // 0 stands in for a maximum of -infinity, so that it is not subtracted from itself.
    const Real base = new_maximum == lowest ? Real(0) : new_maximum;
    const Real rescale = exp2_of((maximum - base) * factor);
    const Real weight = sees ? exp2_of(score * factor - base * factor) : Real(0);
    weights[lane] = weight;
    total = total * rescale + warp_sum(weight);
    maximum = new_maximum;
    __syncwarp();
    for (int64_t d = lane; d < width; d += kWarp) {
      Real sum = sums[d] * rescale;
      const T* value = at.v + seen.index + d;
      for (int64_t key = seen.range.begin; key < seen.range.end; ++key)
        sum += weights[key] * static_cast<Real>(value[key * width]);
      sums[d] = sum;
    }
    __syncwarp();
  }
  const bool empty = total == Real(0);
  store_row(at.out + layout.output_index(pair, row.first), sums, empty ? Real(0) : Real(1) / total,
            width);
  if (lane == 0)
    at.lse[number] = empty ? lowest : maximum * static_cast<Real>(layout.scale) + log(total);
}

/// lse in base 2; 0 for rows that see nothing, whose weights nobody reads.
template <class Real>
__device__ Real base2(Real lse) {
  return lse == -std::numeric_limits<Real>::infinity() ? Real(0)
                                                       : lse * static_cast<Real>(kAttentionLog2E);
}

/// dq = scale * sum over keys of dS k, with P = exp(scale q k - lse), dS = P (dout v - delta).
template <class T>
__global__ void __launch_bounds__(kBlockWarps* kWarp, 4)
    query_gradient_kernel(const __grid_constant__ AttentionLayout layout,
                          const AttentionBackwardPointers<T> at) {
  using Real = Accumulator<T>;
  const int64_t number = warp_number();
  if (number >= layout.num_pairs() * layout.rows()) return;
  const int64_t lane = threadIdx.x % kWarp;
  const int64_t pair = number / layout.rows();
  const int64_t width = layout.head_dim;
  const TileRows row = query_tile(layout, pair, number % layout.rows(), 1);
  const Real factor = static_cast<Real>(layout.scale * kAttentionLog2E);
  Real* query = warp_memory<Real>(3 * width + kWarp);
  Real* dout = query + width;
  Real* sums = dout + width;
  Real* dscores = sums + width;
  load_row(query, at.q + number * width, width);
  load_row(dout, at.dout + layout.output_index(pair, row.first), width);
  load_row(sums, static_cast<const T*>(nullptr), width);
  const Real log2_sum = base2(at.lse[number]);
  const Real delta = at.delta[number];
  __syncwarp();

  VisitedKeys blocks(layout, row.tile, kWarp);
  KeyRows keys;
  while (blocks.next(layout, row.tile, keys)) {
    const SeenKeys seen(layout, row, pair, keys);
    Real dscore = 0;
    if (seen.sees(lane)) {
      const int64_t key = seen.index + lane * width;
      const Real weight = exp2_of(dot(query, at.k + key, width) * factor - log2_sum);
      dscore = weight * (dot(dout, at.v + key, width) - delta);
    }
    dscores[lane] = dscore;
    __syncwarp();
    for (int64_t d = lane; d < width; d += kWarp) {
      Real sum = sums[d];
      const T* key_column = at.k + seen.index + d;
      for (int64_t key = seen.range.begin; key < seen.range.end; ++key)
        sum += dscores[key] * static_cast<Real>(key_column[key * width]);
      sums[d] = sum;
    }
    __syncwarp();
  }
  store_row(at.dq + number * width, sums, static_cast<Real>(layout.scale), width);
}

/// dv = sum over query rows of P dout, dk = scale * sum of dS q, for one key.
template <class T>
__global__ void __launch_bounds__(kBlockWarps* kWarp, 4)
    key_gradient_kernel(const __grid_constant__ AttentionLayout layout,
                        const AttentionBackwardPointers<T> at) {
  using Real = Accumulator<T>;
  const int64_t number = warp_number();  // row of [Kk, pair, Sk]
  if (number >= layout.key_copies * layout.num_pairs() * layout.keys) return;
  const int64_t lane = threadIdx.x % kWarp;
  const int64_t pair = number / layout.keys % layout.num_pairs();
  const int64_t slot = number / layout.keys / layout.num_pairs();
  const int64_t width = layout.head_dim;
  KeyRows keys = key_tile(layout, slot, number % layout.keys, 1);
  const Real factor = static_cast<Real>(layout.scale * kAttentionLog2E);
  Real* key = warp_memory<Real>(4 * width + 2 * kWarp);
  Real* value = key + width;
  Real* dkey = value + width;
  Real* dvalue = dkey + width;
  Real* weights = dvalue + width;
  Real* dscores = weights + kWarp;
  load_row(key, at.k + number * width, width);
  load_row(value, at.v + number * width, width);
  load_row(dkey, static_cast<const T*>(nullptr), width);
  load_row(dvalue, static_cast<const T*>(nullptr), width);
  __syncwarp();

  VisitingQueries tiles(layout, keys.block, kWarp);
  TileRows rows;
  while (tiles.next(layout, pair, keys.block, rows, keys.block.full)) {
    const int64_t first = pair * layout.rows() + rows.first;
    bool sees = lane < rows.count;
    if (sees && !keys.block.full) {
      const int64_t document = layout.document_of(pair, rows.query(layout, lane));
      sees = visible_in_block(layout.mask, keys.block, rows.row(layout, lane), document).size() > 0;
    }
    Real weight = 0;
    Real dscore = 0;
    if (sees) {
      const T* dout = at.dout + layout.output_index(pair, rows.first + lane);
      const Real score = dot(key, at.q + (first + lane) * width, width);
      weight = exp2_of(score * factor - base2(at.lse[first + lane]));
      dscore = weight * (dot(value, dout, width) - at.delta[first + lane]);
    }
    weights[lane] = weight;
    dscores[lane] = dscore;
    const unsigned seeing = __ballot_sync(kAllLanes, sees);
    __syncwarp();
    for (int64_t i = 0; i < rows.count; ++i) {
      if ((seeing >> i & 1U) == 0) continue;
      const T* query = at.q + (first + i) * width;
      const T* dout = at.dout + layout.output_index(pair, rows.first + i);
      for (int64_t d = lane; d < width; d += kWarp) {
        dkey[d] += dscores[i] * static_cast<Real>(query[d]);
        dvalue[d] += weights[i] * static_cast<Real>(dout[d]);
      }
    }
    __syncwarp();
  }
  store_row(at.dk + number * width, dkey, static_cast<Real>(layout.scale), width);
  store_row(at.dv + number * width, dvalue, Real(1), width);
}

/// A warp for each of `count` rows, each with `values` of Real in shared memory.
template <class Real>
LaunchShape one_warp_each(int64_t count, int64_t values) {
  LaunchShape shape = one_thread_each(count * kWarp, kBlockWarps * kWarp);
  shape.shared_bytes = kBlockWarps * values * static_cast<int64_t>(sizeof(Real));
  return shape;
}

}  // namespace

template <class T>
void attention_generic_forward(const AttentionLayout& layout,
                               const AttentionForwardPointers<T>& pointers, cudaStream_t stream) {
  using Real = Accumulator<T>;
  launch(forward_kernel<T>,
         one_warp_each<Real>(layout.num_pairs() * layout.rows(), 2 * layout.head_dim + kWarp),
         stream, layout, pointers);
}

template <class T>
void attention_generic_backward(const AttentionLayout& layout,
                                const AttentionBackwardPointers<T>& pointers, cudaStream_t stream) {
  using Real = Accumulator<T>;
  const int64_t width = layout.head_dim;
  launch(query_gradient_kernel<T>,
         one_warp_each<Real>(layout.num_pairs() * layout.rows(), 3 * width + kWarp), stream, layout,
         pointers);
  const int64_t num_keys = layout.key_copies * layout.num_pairs() * layout.keys;
  launch(key_gradient_kernel<T>, one_warp_each<Real>(num_keys, 4 * width + 2 * kWarp), stream,
         layout, pointers);
}

template void attention_generic_forward(const AttentionLayout&,
                                        const AttentionForwardPointers<double>&, cudaStream_t);
template void attention_generic_forward(const AttentionLayout&,
                                        const AttentionForwardPointers<float>&, cudaStream_t);
template void attention_generic_forward(const AttentionLayout&,
                                        const AttentionForwardPointers<BFloat16>&, cudaStream_t);
template void attention_generic_backward(const AttentionLayout&,
                                         const AttentionBackwardPointers<double>&, cudaStream_t);
template void attention_generic_backward(const AttentionLayout&,
                                         const AttentionBackwardPointers<float>&, cudaStream_t);
template void attention_generic_backward(const AttentionLayout&,
                                         const AttentionBackwardPointers<BFloat16>&, cudaStream_t);

}  // namespace phalanx
