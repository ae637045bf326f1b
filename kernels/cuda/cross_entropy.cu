// Softmax cross-entropy with z-loss over one rank's columns of the vocabulary: one block per row,
// one pass over the logits forward and one, in place, backward.
#include <algorithm>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/reduce.h"

namespace phalanx {
namespace {

/// Rows of logits, the stats of each and its target. Columns from `columns` on are padding.
template <class T>
struct LossRows {
  T* logits;
  Accumulator<T>* stats;
  const int32_t* targets;
  int64_t width, columns, vocab_begin;

  LossRows(const Tensor& logit_rows, const Tensor& stat_rows, const CrossEntropyOptions& options)
      : logits(logit_rows.as<T>()),
        stats(stat_rows.as<Accumulator<T>>()),
        targets(options.targets.as<int32_t>()),
        width(logit_rows.shape.back()),
        columns(std::clamp<int64_t>(options.vocab_size - options.vocab_begin, 0, width)),
        vocab_begin(options.vocab_begin) {}
};

template <class Acc>
__device__ Acc negative_infinity() {
  return -static_cast<Acc>(INFINITY);
}

/// The maximum of some logits and the sum of exp(logit - max), joined logit by logit (Milakov &
/// Gimelshein, "Online normalizer calculation for softmax", 2018). NaN never is the maximum, but
/// makes the sum NaN.
template <class Acc>
struct OnlineSum {
  Acc largest = negative_infinity<Acc>();
  Acc sum{0};

  template <int n>
  __device__ void join(const Acc (&values)[n]) {
    Acc higher = largest;
#pragma unroll
    for (int i = 0; i < n; ++i) higher = values[i] > higher ? values[i] : higher;
    // While all is -infinity any finite number may be subtracted: the terms are 0.
    const Acc shift = higher == negative_infinity<Acc>() ? Acc{0} : higher;
    sum *= exp(largest - shift);
#pragma unroll
    for (int i = 0; i < n; ++i) sum += exp(values[i] - shift);
    largest = higher;
  }
};

template <int n, class T>
__global__ void cross_entropy_forward_kernel(LossRows<T> rows) {
  using Acc = Accumulator<T>;
  __shared__ Acc scratch[kWarp];
  const int64_t row = blockIdx.x;
  const T* logits = rows.logits + row * rows.width;
  OnlineSum<Acc> mine;
  for (int64_t column = int64_t{threadIdx.x} * n; column < rows.columns;
       column += int64_t{blockDim.x} * n) {
    Acc values[n];
    load<n>(values, logits + column);
#pragma unroll
    for (int i = 0; i < n; ++i)
      if (column + i >= rows.columns) values[i] = negative_infinity<Acc>();
    mine.join(values);
  }
  const Acc largest = block_max(mine.largest, scratch, negative_infinity<Acc>());
  const Acc sum = block_sum(mine.sum * exp(mine.largest - largest), scratch);
  if (threadIdx.x != 0) return;
  const int64_t target = rows.targets[row] - rows.vocab_begin;
  const bool here = 0 <= target && target < rows.columns;
  Acc* stats = rows.stats + row * 3;
  stats[0] = largest;
  stats[1] = rows.columns == 0 ? Acc{0} : sum;
  stats[2] = here ? static_cast<Acc>(logits[target]) : Acc{0};
}

/// Factor of exp(logit - max) in the gradient: d/dlogit [CE + z lse^2] = (1 + 2 z lse) softmax -
/// onehot(target).
template <class Acc>
__device__ Acc softmax_factor(const Acc* stats, double loss_scale, double z_loss) {
  const double lse = static_cast<double>(stats[0]) + log(stats[1]);
  return static_cast<Acc>(loss_scale * (1.0 + 2.0 * z_loss * lse) / stats[1]);
}

template <int n, class T>
__global__ void cross_entropy_backward_kernel(LossRows<T> rows, double loss_scale, double z_loss) {
  using Acc = Accumulator<T>;
  __shared__ Acc shared_factor;
  const int64_t row = blockIdx.x;
  // One thread divides in f64, because that unit is the slowest.
  if (threadIdx.x == 0) shared_factor = softmax_factor(rows.stats + row * 3, loss_scale, z_loss);
  __syncthreads();
  const Acc factor = shared_factor;
  const Acc largest = rows.stats[row * 3];
  const auto onehot = static_cast<Acc>(loss_scale);
  T* logits = rows.logits + row * rows.width;
  const int64_t target = rows.targets[row] - rows.vocab_begin;
  const int64_t columns = rows.targets[row] >= 0 ? rows.columns : 0;  // others are 0
  for (int64_t column = int64_t{threadIdx.x} * n; column < rows.width;
       column += int64_t{blockDim.x} * n) {
    Acc values[n] = {};
    if (column < columns) load<n>(values, logits + column);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      Acc value = exp(values[i] - largest) * factor;
      // Subtracted before rounding to T, because 1 - softmax is small for a learned token.
      if (column + i == target) value -= onehot;
      values[i] = column + i < columns ? value : Acc{0};
    }
    store<n>(logits + column, values);
  }
}

/// One block: as many rows as a micro-batch has tokens, three numbers each.
template <class Acc>
__global__ void cross_entropy_loss_kernel(double* sums, const Acc* stats, const int32_t* targets,
                                          int64_t rows) {
  __shared__ double scratch[kWarp];
  double loss = 0.0;
  double squares = 0.0;
  for (int64_t row = threadIdx.x; row < rows; row += blockDim.x) {
    if (targets[row] < 0) continue;
    const double lse =
        static_cast<double>(stats[row * 3]) + log(static_cast<double>(stats[row * 3 + 1]));
    loss += lse - static_cast<double>(stats[row * 3 + 2]);
    squares += lse * lse;
  }
  loss = block_sum(loss, scratch);
  squares = block_sum(squares, scratch);
  if (threadIdx.x != 0) return;
  sums[0] += loss;
  sums[1] += squares;
}

/// Calls body.operator()<n>(shape) with elements per access and a block per row, of as many warps
/// as the row has packs for, at most 512 threads.
template <class T, class Body>
void dispatch_rows(const Tensor& logits, const Body& body) {
  const int64_t width = logits.shape.back();
  dispatch_packs<T>(width % kPack<T> == 0 && starts_packs({logits.data}), [&]<int n>() {
    const int64_t warps = (width + n * kWarp - 1) / (n * kWarp);
    LaunchShape shape = one_thread_each(logits.shape.rows(), 1);
    shape.block = dim3(static_cast<unsigned>(std::clamp<int64_t>(warps, 1, 16) * kWarp));
    body.template operator()<n>(shape);
  });
}

}  // namespace

void CudaBackend::cross_entropy_forward_impl(const Tensor& stats, const Tensor& logits,
                                             const CrossEntropyOptions& options) {
  dispatch_float(logits.dtype, [&]<class T>() {
    dispatch_rows<T>(logits, [&]<int n>(const LaunchShape& shape) {
      launch(cross_entropy_forward_kernel<n, T>, shape, stream_,
             LossRows<T>(logits, stats, options));
    });
  });
}

void CudaBackend::cross_entropy_backward_impl(const Tensor& logits, const Tensor& stats,
                                              const CrossEntropyOptions& options) {
  dispatch_float(logits.dtype, [&]<class T>() {
    dispatch_rows<T>(logits, [&]<int n>(const LaunchShape& shape) {
      launch(cross_entropy_backward_kernel<n, T>, shape, stream_,
             LossRows<T>(logits, stats, options), options.loss_scale, options.z_loss);
    });
  });
}

void CudaBackend::cross_entropy_loss_impl(const Tensor& sums, const Tensor& stats,
                                          const CrossEntropyOptions& options) {
  dispatch_float(stats.dtype, [&]<class T>() {
    if constexpr (!std::is_same_v<T, BFloat16>) {
      constexpr int kThreads = 1024;
      launch(cross_entropy_loss_kernel<T>, one_thread_each(kThreads, kThreads), stream_,
             sums.as<double>(), stats.as<T>(), options.targets.as<int32_t>(), stats.shape.rows());
    }
  });
}

}  // namespace phalanx
