// AdamW in one pass over parameter, master, moments and gradient; and the gradient norm's sum.
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

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
struct AdamWSpans {
  Parameter* parameter;
  Master* master;
  Master* exp_avg;
  Master* exp_avg_sq;
  const Master* gradient;

  void update(int64_t begin, int64_t end, const AdamWScalars<Master>& by) const {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const Master g = gradient[i] * by.gradient_scale;
      const Master m = by.beta1 * exp_avg[i] + (Master{1} - by.beta1) * g;
      const Master v = by.beta2 * exp_avg_sq[i] + (Master{1} - by.beta2) * g * g;
      exp_avg[i] = m;
      exp_avg_sq[i] = v;
      const Master denominator = std::sqrt(v) * by.root_correction + by.epsilon;
      master[i] = master[i] * by.decay - by.step_size * m / denominator;
    }
    if (parameter == nullptr) return;
    convert_span(parameter + begin, master + begin, end - begin);
  }
};

}  // namespace

void CpuBackend::adamw_step_impl(const AdamWTensors& tensors, const AdamWOptions& options) {
  const int64_t count = tensors.master.numel();
  const auto run = [&]<class Master, class Parameter>(Parameter* parameter, Master* master) {
    const AdamWScalars<Master> scalars(options);
    const AdamWSpans<Master, Parameter> spans{parameter, master, tensors.exp_avg.as<Master>(),
                                              tensors.exp_avg_sq.as<Master>(),
                                              tensors.gradient.as<Master>()};
    constexpr int64_t kBlock = 2048;  // the parameter copy reads the master from cache
    parallel_ranges(num_threads_, count, kBlock, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; at += kBlock)
        spans.update(at, std::min(end, at + kBlock), scalars);
    });
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

void CpuBackend::add_sum_squares_impl(const Tensor& sum, const Tensor& x) {
  dispatch_float(x.dtype, [&]<class T>() {
    const T* in = x.as<T>();
    const FixedParts split(x.numel(), kElementGrain);
    auto* partial = workspace<double>(split.parts);
    parallel_ranges(num_threads_, split.parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        double total = 0.0;
        const int64_t last = split.end(part);
#pragma omp simd reduction(+ : total)
        for (int64_t i = split.begin(part); i < last; ++i) {
          const auto value = static_cast<double>(static_cast<Accumulator<T>>(in[i]));
          total += value * value;
        }
        partial[part] = total;
      }
    });
    for (int64_t part = 0; part < split.parts; ++part) *sum.as<double>() += partial[part];
  });
}

}  // namespace phalanx
