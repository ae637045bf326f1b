// Attention on a GPU: which kernels serve a call, the row sums before a backward, and the merge of
// parts.
#include <cmath>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

namespace phalanx {
namespace {

constexpr int kThreads = 256;
constexpr int kRowLanes = 8;  // lanes that share a row of a head: D = 64 in bf16 is 16 bytes each

LaunchShape eight_lanes_each(int64_t rows) {
  return one_thread_each(rows * kRowLanes, kThreads);
}

/// The sum over the row's eight lanes, on all of them.
template <class Real>
__device__ Real row_sum(Real value) {
  for (int offset = kRowLanes / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

/// kWide neighbouring values of T, moved at once.
template <class T, int kWide>
struct alignas(sizeof(T) * kWide) Pack {
  T value[kWide];
};

/// delta = rowsum(dout * out) for rows [pair, Sq*Kq*R].
template <class T, int kWide>
__global__ void __launch_bounds__(kThreads)
    delta_kernel(const __grid_constant__ AttentionLayout layout, const T* dout, const T* out,
                 Accumulator<T>* delta) {
  using Real = Accumulator<T>;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row = thread / kRowLanes;
  const bool exists = row < layout.num_pairs() * layout.rows();
  Real sum = 0;
  if (exists) {
    const int64_t index = layout.output_index(row / layout.rows(), row % layout.rows());
    for (int64_t d = thread % kRowLanes * kWide; d < layout.head_dim; d += kRowLanes * kWide) {
      const auto a = *reinterpret_cast<const Pack<T, kWide>*>(dout + index + d);
      const auto b = *reinterpret_cast<const Pack<T, kWide>*>(out + index + d);
      for (int i = 0; i < kWide; ++i)
        sum += static_cast<Real>(a.value[i]) * static_cast<Real>(b.value[i]);
    }
  }
  sum = row_sum(sum);  // all lanes of the warp take part
  if (exists && thread % kRowLanes == 0) delta[row] = sum;
}

/// out [Sq, B, Kq, A*D] and lse [B, G, Sq, Kq*R] take in part and part_lse (see Backend). Eight
/// lanes for each head of a row of out.
template <class T, int kWide>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(const __grid_constant__ AttentionLayout layout, Accumulator<T>* out,
                 Accumulator<T>* lse, const T* part, const Accumulator<T>* part_lse) {
  using Real = Accumulator<T>;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row = thread / kRowLanes;
  const bool exists = row < layout.num_pairs() * layout.rows();
  const Real nothing = -std::numeric_limits<Real>::infinity();
  const Real old_lse = exists ? lse[row] : nothing;
  const Real added_lse = exists ? part_lse[row] : nothing;
  __syncwarp();  // lane 0 of the row writes lse[row] below
  if (!exists || added_lse == nothing) return;
  const Real maximum = old_lse > added_lse ? old_lse : added_lse;
  const Real old_weight = exp(old_lse - maximum);
  const Real new_weight = exp(added_lse - maximum);
  const Real total = old_weight + new_weight;
  const Real before = old_weight / total;
  const Real more = new_weight / total;
  const int64_t index = layout.output_index(row / layout.rows(), row % layout.rows());
  for (int64_t d = thread % kRowLanes * kWide; d < layout.head_dim; d += kRowLanes * kWide) {
    auto* y = reinterpret_cast<Pack<Real, kWide>*>(out + index + d);
    const auto x = *reinterpret_cast<const Pack<T, kWide>*>(part + index + d);
    Pack<Real, kWide> sum = *y;
    for (int i = 0; i < kWide; ++i)
      sum.value[i] = before * sum.value[i] + more * static_cast<Real>(x.value[i]);
    *y = sum;
  }
  if (thread % kRowLanes == 0) lse[row] = maximum + log(total);
}

/// Whether `count` values of T at each pointer and every multiple of `step` beyond it are aligned.
template <class T, class... Pointers>
bool aligned_packs(int64_t count, int64_t step, Pointers... pointers) {
  const auto bytes = static_cast<uintptr_t>(count) * sizeof(T);
  return step % count == 0 && ((reinterpret_cast<uintptr_t>(pointers) % bytes == 0) && ...);
}

template <class T>
void make_delta(const AttentionLayout& layout, const Backend::AttentionBackward& arguments,
                cudaStream_t stream) {
  constexpr int kWide = 16 / sizeof(T);
  const T* dout = arguments.dout.as<T>();
  const T* out = arguments.out.as<T>();
  const bool wide = aligned_packs<T>(kWide, layout.head_dim, dout, out);
  launch(wide ? delta_kernel<T, kWide> : delta_kernel<T, 1>,
         eight_lanes_each(layout.num_pairs() * layout.rows()), stream, layout, dout, out,
         arguments.delta.as<Accumulator<T>>());
}

PositionRuns position_runs(const char* name, std::span<const PositionRange> runs,
                           int64_t positions) {
  PositionRuns result;
  check(static_cast<int64_t>(runs.size()) <= PositionRuns::kCapacity, "attention has ", name,
        " at ", runs.size(), " runs of positions; on a GPU it takes ", PositionRuns::kCapacity,
        ": use larger blocks or strides in sparse layers, or fewer context-parallel ranks");
  if (runs.empty()) result.run[result.count++] = {0, positions};
  for (const PositionRange& run : runs) result.run[result.count++] = run;
  return result;
}

constexpr bool is_mma_width(int64_t head_dim) {
  return head_dim == 64 || head_dim == 96 || head_dim == 128;
}

/// TMA counts rows and planes in 32 bits, and has no empty tensors.
bool is_hopper_shape(const AttentionLayout& layout) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t rows = std::max(layout.rows(), layout.keys);
  const int64_t planes = layout.num_pairs() * layout.key_copies;
  return layout.head_dim <= 128 && std::min(layout.rows(), layout.keys) > 0 && planes > 0 &&
         rows <= kMost && planes <= kMost && attention_hopper_is_there();
}

}  // namespace

bool attention_mma_supports(const AttentionLayout& layout,
                            const AttentionForwardPointers<BFloat16>& at) {
  return is_mma_width(layout.head_dim) &&
         aligned_packs<BFloat16>(8, layout.head_dim, at.q, at.k, at.v, at.out);
}

bool attention_mma_supports(const AttentionLayout& layout,
                            const AttentionBackwardPointers<BFloat16>& at) {
  return is_mma_width(layout.head_dim) &&
         aligned_packs<BFloat16>(8, layout.head_dim, at.q, at.k, at.v, at.dout, at.dq, at.dk,
                                 at.dv);
}

bool attention_hopper_supports(const AttentionLayout& layout,
                               const AttentionForwardPointers<BFloat16>& at) {
  return is_hopper_shape(layout) &&
         aligned_packs<BFloat16>(8, layout.head_dim, at.q, at.k, at.v, at.out);
}

bool attention_hopper_supports(const AttentionLayout& layout,
                               const AttentionBackwardPointers<BFloat16>& at) {
  return is_hopper_shape(layout) && aligned_packs<BFloat16>(8, layout.head_dim, at.q, at.k, at.v,
                                                            at.dout, at.dq, at.dk, at.dv);
}

AttentionLayout make_attention_layout(const AttentionInputs& inputs) {
  const Shape& q = inputs.q.shape;
  const Shape& k = inputs.k.shape;
  check(inputs.scale > 0.0, "the scale of attention must be positive: ", inputs.scale);
  return {.batch = q[0],
          .groups = q[1],
          .queries = q[2],
          .keys = k[3],
          .head_dim = q[4],
          .query_copies = inputs.query_copies,
          .first_query_copy = inputs.first_query_copy,
          .heads_per_group = q[3] / inputs.query_copies,
          .key_copies = k[0],
          .first_key_copy = inputs.first_key_copy,
          .scale = inputs.scale,
          .document_start = inputs.document_start ? inputs.document_start.as<int32_t>() : nullptr,
          .mask = inputs.mask,
          .query_runs = position_runs("queries", inputs.query_runs, q[2]),
          .key_runs = position_runs("keys", inputs.key_runs, k[3])};
}

void CudaBackend::attention_forward_impl(const Tensor& out, const Tensor& lse,
                                         const AttentionInputs& inputs) {
  const AttentionLayout layout = make_attention_layout(inputs);
  dispatch_float(inputs.q.dtype, [&]<class T>() {
    const AttentionForwardPointers<T> pointers{.q = inputs.q.as<T>(),
                                               .k = inputs.k.as<T>(),
                                               .v = inputs.v.as<T>(),
                                               .out = out.as<T>(),
                                               .lse = lse.as<Accumulator<T>>()};
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (attention_hopper_supports(layout, pointers))
        return attention_hopper_forward(layout, pointers, stream_);
      if (attention_mma_supports(layout, pointers))
        return attention_mma_forward(layout, pointers, stream_);
    }
    attention_generic_forward(layout, pointers, stream_);
  });
}

void CudaBackend::attention_backward_impl(const AttentionBackward& arguments,
                                          const AttentionInputs& inputs) {
  const AttentionLayout layout = make_attention_layout(inputs);
  dispatch_float(inputs.q.dtype, [&]<class T>() {
    using Real = Accumulator<T>;
    make_delta<T>(layout, arguments, stream_);
    const AttentionBackwardPointers<T> pointers{.q = inputs.q.as<T>(),
                                                .k = inputs.k.as<T>(),
                                                .v = inputs.v.as<T>(),
                                                .dout = arguments.dout.as<T>(),
                                                .lse = arguments.lse.as<Real>(),
                                                .delta = arguments.delta.as<Real>(),
                                                .dq = arguments.gradients.dq.as<T>(),
                                                .dk = arguments.gradients.dk.as<T>(),
                                                .dv = arguments.gradients.dv.as<T>()};
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (attention_hopper_supports(layout, pointers))
        return attention_hopper_backward(layout, pointers, stream_);
      if (attention_mma_supports(layout, pointers))
        return attention_mma_backward(layout, pointers, stream_);
    }
    attention_generic_backward(layout, pointers, stream_);
  });
}

void CudaBackend::attention_merge_impl(const Tensor& out, const Tensor& lse, const Tensor& part,
                                       const Tensor& part_lse) {
  const Shape& rows = lse.shape;  // [B, G, Sq, Kq*R]
  AttentionLayout layout{.batch = rows[0],
                         .groups = rows[1],
                         .queries = rows[2],
                         .query_copies = out.shape[2],
                         .heads_per_group = rows[3] / out.shape[2]};
  layout.head_dim = out.shape[3] / (layout.groups * layout.heads_per_group);
  dispatch_float(part.dtype, [&]<class T>() {
    using Real = Accumulator<T>;
    constexpr int kWide = 16 / sizeof(Real);
    const bool wide = aligned_packs<Real>(kWide, layout.head_dim, out.as<Real>()) &&
                      aligned_packs<T>(kWide, layout.head_dim, part.as<T>());
    launch(wide ? merge_kernel<T, kWide> : merge_kernel<T, 1>,
           eight_lanes_each(layout.num_pairs() * layout.rows()), stream_, layout, out.as<Real>(),
           lse.as<Real>(), part.as<T>(), part_lse.as<Real>());
  });
}

}  // namespace phalanx
