// RMSNorm (Zhang & Sennrich 2019): y = (x / sqrt(mean(x^2) + eps)) * weight. A warp or a block per
// row; the row stays in registers between its statistics and its result, and only what does not fit
// is read again.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/row_sums.h"

namespace phalanx {
namespace {

template <class T>
struct NormForward {
  using Acc = Accumulator<T>;
  T* y;
  Acc* rstd;
  T* sum;      // with an addition: a + b, may be a or b
  const T* a;  // x without an addition
  const T* b;
  const T* weight;
  int64_t rows, width;
  Acc epsilon;
};

template <class T, int n>
__device__ Accumulator<T> sum_of_squares(const Pack<T, n>& pack) {
  Accumulator<T> values[n];
  Accumulator<T> sum{};
  unpack(values, pack);
#pragma unroll
  for (int j = 0; j < n; ++j) sum += values[j] * values[j];
  return sum;
}

/// a + b rounded to T, as what the sum's tensor holds is what is normalised.
template <class T, int n>
__device__ Pack<T, n> add_packs(const Pack<T, n>& a, const Pack<T, n>& b) {
  Accumulator<T> left[n];
  Accumulator<T> right[n];
  unpack(left, a);
  unpack(right, b);
#pragma unroll
  for (int j = 0; j < n; ++j) left[j] += right[j];
  return pack_values<T, n>(left);
}

/// The normalised pack, rounded to T before the weight, as HybridNorm's code does.
template <class T, int n>
__device__ Pack<T, n> normalise(const Pack<T, n>& x, const T* weight, Accumulator<T> rstd) {
  Accumulator<T> values[n];
  Accumulator<T> weights[n];
  unpack(values, x);
  unpack(weights, load_constant_pack<n>(weight));
#pragma unroll
  for (int j = 0; j < n; ++j) values[j] = rounded<T>(values[j] * rstd) * weights[j];
  return pack_values<T, n>(values);
}

enum class Addition { no, yes };

/// The pack at `at` as it is normalised: x itself, or a + b, which is stored.
template <Addition addition, int n, class T>
__device__ Pack<T, n> combine(const NormForward<T>& norm, int64_t at, const Pack<T, n>& a,
                              const Pack<T, n>& b) {
  if constexpr (addition == Addition::no) return a;
  const auto sum = add_packs(a, b);
  store_pack(norm.sum + at, sum);
  return sum;
}
template <Addition addition, int n, class T>
__device__ Pack<T, n> load_b(const NormForward<T>& norm, int64_t at) {
  if constexpr (addition == Addition::no) return {};
  return load_pack<n>(norm.b + at);
}

template <Addition addition, int n, class T>
__global__ void __launch_bounds__(1024, 1) norm_rows(NormForward<T> norm) {
  using Acc = Accumulator<T>;
  __shared__ Acc scratch[kWarp];
  const int64_t row = own_row();
  if (row >= norm.rows) return;
  const int64_t step = int64_t{blockDim.x} * n;
  const int64_t first = int64_t{threadIdx.x} * n;
  const int64_t start = row * norm.width;
  const T* source = addition == Addition::yes ? norm.sum : norm.a;
  Pack<T, n> kept[kKept];
  Pack<T, n> added[kKept];
  Acc squares{};
#pragma unroll
  for (int j = 0; j < kKept;
       ++j) {  // all loads before the first store, which `sum` may forbid later
    const int64_t i = first + j * step;
    if (i >= norm.width) continue;
    kept[j] = load_pack<n>(norm.a + start + i);
    added[j] = load_b<addition, n>(norm, start + i);
  }
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int64_t i = first + j * step;
    if (i >= norm.width) continue;
    kept[j] = combine<addition, n>(norm, start + i, kept[j], added[j]);
    squares += sum_of_squares(kept[j]);
  }
  for (int64_t i = first + kKept * step; i < norm.width; i += step)
    squares += sum_of_squares(combine<addition, n>(
        norm, start + i, load_pack<n>(norm.a + start + i), load_b<addition, n>(norm, start + i)));

  const Acc mean = row_sum(squares, scratch) / static_cast<Acc>(norm.width);
  const Acc rstd = Acc{1} / sqrt(mean + norm.epsilon);
  if (threadIdx.x == 0) norm.rstd[row] = rstd;
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int64_t i = first + j * step;
    if (i < norm.width) store_pack(norm.y + start + i, normalise(kept[j], norm.weight + i, rstd));
  }
  for (int64_t i = first + kKept * step; i < norm.width; i += step)
    store_pack(norm.y + start + i,
               normalise(load_pack<n>(source + start + i), norm.weight + i, rstd));
}

template <Addition addition, class T>
void launch_forward(const NormForward<T>& norm, cudaStream_t stream) {
  const bool in_packs =
      norm.width % kPack<T> == 0 && starts_packs({norm.y, norm.sum, norm.a, norm.b, norm.weight});
  dispatch_packs<T>(in_packs, [&]<int n>() {
    const LaunchShape shape = row_shape(norm.rows, row_threads((norm.width + n - 1) / n));
    launch(norm_rows<addition, n, T>, shape, stream, norm);
  });
}

constexpr int kBackwardThreads = 256;  // per row: they hold a row of 8,192 elements of bf16
/// Threads of all parts: an estimate of what a GPU holds at the registers of this kernel.
constexpr int64_t kPartThreads = 32768;

template <class T>
struct NormBackward {
  using Acc = Accumulator<T>;
  T* dx;
  const T* dy;
  const T* x;
  const T* weight;
  const T* dresidual;  // may be null, dx or dy
  const Acc* rstd;
  Acc* partial;  // [parts, width]: shares of dweight
  int64_t rows, width, parts;
};

/// What a row's sums give to each of its elements.
template <class T>
struct RowFactors {
  Accumulator<T> rstd, along_x;
};

/// What a row's backward reads.
template <class T, int n>
struct BackwardPacks {
  Pack<T, n> dy, x, residual;
};

template <int n, class T>
__device__ BackwardPacks<T, n> load_packs(const NormBackward<T>& norm, int64_t at) {
  BackwardPacks<T, n> packs{load_pack<n>(norm.dy + at), load_pack<n>(norm.x + at), {}};
  if (norm.dresidual != nullptr) packs.residual = load_pack<n>(norm.dresidual + at);
  return packs;
}

/// Adds a pack's products to `share` (of dweight) and returns its share of dy . (weight x).
template <class T, int n>
__device__ Accumulator<T> add_products(Accumulator<T> (&share)[n], const BackwardPacks<T, n>& packs,
                                       const T* weight, Accumulator<T> rstd) {
  using Acc = Accumulator<T>;
  Acc gradients[n];
  Acc values[n];
  Acc weights[n];
  unpack(gradients, packs.dy);
  unpack(values, packs.x);
  unpack(weights, load_constant_pack<n>(weight));
  Acc dot{};
#pragma unroll
  for (int j = 0; j < n; ++j) {
    const Acc product = gradients[j] * values[j];
    share[j] += product * rstd;
    dot += product * weights[j];
  }
  return dot;
}

/// dx = rstd * (dy * weight - x * rstd * mean(dy * weight * x * rstd)) + dresidual, at column i of
/// the row that begins at `start`.
template <class T, int n>
__device__ void store_gradient(const NormBackward<T>& norm, int64_t start, int64_t i,
                               const BackwardPacks<T, n>& packs, const RowFactors<T>& factors) {
  Accumulator<T> gradients[n];
  Accumulator<T> values[n];
  Accumulator<T> weights[n];
  unpack(gradients, packs.dy);
  unpack(values, packs.x);
  unpack(weights, load_constant_pack<n>(norm.weight + i));
#pragma unroll
  for (int j = 0; j < n; ++j)
    gradients[j] = gradients[j] * weights[j] * factors.rstd - values[j] * factors.along_x;
  if (norm.dresidual != nullptr) {
    unpack(values, packs.residual);
#pragma unroll
    for (int j = 0; j < n; ++j) gradients[j] += values[j];
  }
  store<n>(norm.dx + start + i, gradients);
}

/// A warp or a block per part: rows part, part + parts, ... Each thread keeps its columns' share of
/// dweight in registers; columns beyond them keep it in the partial sums themselves.
template <class T, int n>
__global__ void __launch_bounds__(kBackwardThreads) norm_rows_backward(NormBackward<T> norm) {
  using Acc = Accumulator<T>;
  __shared__ Acc scratch[kWarp];
  const int64_t part = own_row();
  if (part >= norm.parts) return;
  const int64_t step = int64_t{blockDim.x} * n;
  const int64_t first = int64_t{threadIdx.x} * n;
  const int64_t beyond = first + kKept * step;
  Acc* partial = norm.partial + part * norm.width;
  Acc shares[kKept][n] = {};
  const Acc zeros[n] = {};
  for (int64_t i = beyond; i < norm.width; i += step) store<n>(partial + i, zeros);
  for (int64_t row = part; row < norm.rows; row += norm.parts) {
    const int64_t start = row * norm.width;
    const Acc rstd = norm.rstd[row];
    BackwardPacks<T, n> kept[kKept];
    Acc dot{};
#pragma unroll
    for (int j = 0; j < kKept; ++j) {  // all loads before the first store
      const int64_t i = first + j * step;
      if (i < norm.width) kept[j] = load_packs<n>(norm, start + i);
    }
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int64_t i = first + j * step;
      if (i < norm.width) dot += add_products(shares[j], kept[j], norm.weight + i, rstd);
    }
    for (int64_t i = beyond; i < norm.width; i += step) {
      Acc share[n];
      load<n>(share, partial + i);
      dot += add_products(share, load_packs<n>(norm, start + i), norm.weight + i, rstd);
      store<n>(partial + i, share);
    }
    dot = row_sum(dot, scratch);
    const RowFactors<T> factors{rstd, dot * rstd * rstd * rstd / static_cast<Acc>(norm.width)};
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int64_t i = first + j * step;
      if (i < norm.width) store_gradient(norm, start, i, kept[j], factors);
    }
    for (int64_t i = beyond; i < norm.width; i += step)
      store_gradient(norm, start, i, load_packs<n>(norm, start + i), factors);
  }
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int64_t i = first + j * step;
    if (i < norm.width) store<n>(partial + i, shares[j]);
  }
}

}  // namespace

void CudaBackend::rms_norm_forward_impl(const Tensor& y, const Tensor& rstd, const Tensor& x,
                                        const Tensor& weight, double epsilon) {
  dispatch_float(x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const NormForward<T> norm{.y = y.as<T>(),
                              .rstd = rstd.as<Acc>(),
                              .sum = nullptr,
                              .a = x.as<T>(),
                              .b = nullptr,
                              .weight = weight.as<T>(),
                              .rows = x.shape.rows(),
                              .width = x.shape.back(),
                              .epsilon = static_cast<Acc>(epsilon)};
    launch_forward<Addition::no>(norm, stream_);
  });
}

void CudaBackend::add_rms_norm_forward_impl(const AddRmsNorm& arguments) {
  dispatch_float(arguments.a.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const NormForward<T> norm{.y = arguments.y.as<T>(),
                              .rstd = arguments.rstd.as<Acc>(),
                              .sum = arguments.sum.as<T>(),
                              .a = arguments.a.as<T>(),
                              .b = arguments.b.as<T>(),
                              .weight = arguments.weight.as<T>(),
                              .rows = arguments.a.shape.rows(),
                              .width = arguments.a.shape.back(),
                              .epsilon = static_cast<Acc>(arguments.epsilon)};
    launch_forward<Addition::yes>(norm, stream_);
  });
}

void CudaBackend::rms_norm_backward_impl(const RmsNormBackward& arguments) {
  dispatch_float(arguments.x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    NormBackward<T> norm{.dx = arguments.dx.as<T>(),
                         .dy = arguments.dy.as<T>(),
                         .x = arguments.x.as<T>(),
                         .weight = arguments.weight.as<T>(),
                         .dresidual = arguments.dresidual ? arguments.dresidual.as<T>() : nullptr,
                         .rstd = arguments.rstd.as<Acc>(),
                         .partial = nullptr,
                         .rows = arguments.x.shape.rows(),
                         .width = arguments.x.shape.back(),
                         .parts = 1};
    if (norm.rows == 0 || norm.width == 0) return;
    const bool in_packs = norm.width % kPack<T> == 0 &&
                          starts_packs({norm.dx, norm.dy, norm.x, norm.weight, norm.dresidual});
    dispatch_packs<T>(in_packs, [&]<int n>() {
      const int threads = row_threads((norm.width + n - 1) / n, kBackwardThreads);
      const int64_t bytes = norm.width * static_cast<int64_t>(sizeof(Acc));
      norm.parts = number_of_parts(
          norm.rows, std::min(kPartThreads / threads, workspace_bytes(Device::cuda) / bytes));
      norm.partial = static_cast<Acc*>(workspace(norm.parts * bytes));
      launch(norm_rows_backward<T, n>, row_shape(norm.parts, threads), stream_, norm);
    });
    launch_add_parts(arguments.dweight.as<Acc>(), norm.partial, norm.parts, norm.width, stream_);
  });
}

}  // namespace phalanx
