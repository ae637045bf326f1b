// AdamW in one pass over parameter, master, moments and gradient; and the gradient norm's sum.
#include <cmath>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/row_sums.h"

namespace phalanx {
namespace {

/// Loshchilov & Hutter, ICLR 2019, Algorithm 2, with the bias corrections folded into the scalars.
template <class Master>
struct AdamWScalars {
  Master decay, step_size, root_correction, beta1, beta2, epsilon, gradient_scale;

  explicit AdamWScalars(const AdamWOptions& options) {
    const auto step = static_cast<double>(options.step);
    const double correction1 = 1.0 - std::pow(options.beta1, step);
    const double correction2 = 1.0 - std::pow(options.beta2, step);
    decay = static_cast<Master>(1.0 - options.learning_rate * options.weight_decay);
    step_size = static_cast<Master>(options.learning_rate / correction1);
    root_correction = static_cast<Master>(1.0 / std::sqrt(correction2));
    beta1 = static_cast<Master>(options.beta1);
    beta2 = static_cast<Master>(options.beta2);
    epsilon = static_cast<Master>(options.epsilon);
    gradient_scale = static_cast<Master>(options.gradient_scale);
  }
};

/// `parameter` is null where the master is the parameter.
template <class Master, class Parameter>
struct AdamWStep {
  AdamWScalars<Master> by;
  Parameter* parameter;
  Master* master;
  Master* exp_avg;
  Master* exp_avg_sq;
  const Master* gradient;

  template <int n>
  __device__ void run(int64_t begin) const {
    Master value[n], m[n], v[n], g[n];
    load<n>(value, master + begin);
    load<n>(m, exp_avg + begin);
    load<n>(v, exp_avg_sq + begin);
    load<n>(g, gradient + begin);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const Master scaled = g[i] * by.gradient_scale;
      m[i] = by.beta1 * m[i] + (Master{1} - by.beta1) * scaled;
      v[i] = by.beta2 * v[i] + (Master{1} - by.beta2) * scaled * scaled;
      const Master denominator = sqrt(v[i]) * by.root_correction + by.epsilon;
      value[i] = value[i] * by.decay - by.step_size * m[i] / denominator;
    }
    store<n>(master + begin, value);
    store<n>(exp_avg + begin, m);
    store<n>(exp_avg_sq + begin, v);
    if (parameter == nullptr) return;
    Accumulator<Parameter> rounded[n];
#pragma unroll
    for (int i = 0; i < n; ++i) rounded[i] = static_cast<Accumulator<Parameter>>(value[i]);
    store<n>(parameter + begin, rounded);
  }
};

constexpr int kSumThreads = 256;

/// partial[block] = the block's share of the sum of squares, in f64.
template <int n, class T>
__global__ void sum_squares_kernel(double* partial, const T* x, int64_t count) {
  __shared__ double scratch[kWarp];
  const int64_t thread = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  double sum = 0.0;
  for (int64_t at = thread * n; at < count; at += int64_t{gridDim.x} * kSumThreads * n) {
    Accumulator<T> values[n];
    const int whole = at + n <= count ? n : 0;
    if (whole == n) load<n>(values, x + at);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (whole == 0) values[i] = at + i < count ? static_cast<Accumulator<T>>(x[at + i]) : 0;
      const auto value = static_cast<double>(values[i]);
      sum += value * value;
    }
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

}  // namespace

void CudaBackend::adamw_step_impl(const AdamWTensors& tensors, const AdamWOptions& options) {
  const auto run = [&]<class Master, class Parameter>(Parameter* parameter, Master* master) {
    const AdamWStep<Master, Parameter> step{.by = AdamWScalars<Master>(options),
                                            .parameter = parameter,
                                            .master = master,
                                            .exp_avg = tensors.exp_avg.as<Master>(),
                                            .exp_avg_sq = tensors.exp_avg_sq.as<Master>(),
                                            .gradient = tensors.gradient.as<Master>()};
    const bool in_packs =
        starts_packs({parameter, master, step.exp_avg, step.exp_avg_sq, step.gradient});
    // A thread takes as many elements as fill a pack of either type.
    using Smaller = std::conditional_t<(sizeof(Parameter) < sizeof(Master)), Parameter, Master>;
    launch_packs<Smaller>(step, tensors.master.numel(), in_packs, stream_);
  };
  dispatch_float(tensors.master.dtype, [&]<class Master>() {
    if constexpr (!std::is_same_v<Master, BFloat16>) {
      auto* master = tensors.master.as<Master>();
      if (!tensors.parameter) return run(static_cast<Master*>(nullptr), master);
      dispatch_float(tensors.parameter.dtype,
                     [&]<class Parameter>() { run(tensors.parameter.as<Parameter>(), master); });
    }
  });
}

void CudaBackend::add_sum_squares_impl(const Tensor& sum, const Tensor& x) {
  // A number of parts that depends on the count alone gives the same bits on any GPU.
  constexpr int64_t kElementsPerPart = 16384, kMostParts = 1024;
  const int64_t parts = std::min((x.numel() + kElementsPerPart - 1) / kElementsPerPart, kMostParts);
  if (parts == 0) return;
  auto* partial = static_cast<double*>(workspace(parts * int64_t{sizeof(double)}));
  dispatch_float(x.dtype, [&]<class T>() {
    dispatch_packs<T>(starts_packs({x.data}), [&]<int n>() {
      launch(sum_squares_kernel<n, T>, one_thread_each(parts * kSumThreads, kSumThreads), stream_,
             partial, x.as<T>(), x.numel());
    });
  });
  launch_add_parts(sum.as<double>(), partial, parts, 1, stream_);
}

}  // namespace phalanx
