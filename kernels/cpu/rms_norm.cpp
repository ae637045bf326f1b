// RMSNorm (Zhang & Sennrich 2019): y = (x / sqrt(mean(x^2) + eps)) * weight, one pass over memory:
// a row stays in the first-level cache between its statistics and its result.
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace phalanx {
namespace {

template <class T>
Accumulator<T> mean_square(const T* x, int64_t width) {
  Accumulator<T> sum{};
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) {
    const auto value = static_cast<Accumulator<T>>(x[i]);
    sum += value * value;
  }
  return sum / static_cast<Accumulator<T>>(width);
}

/// Writes y and returns 1 / rms.
template <class T>
Accumulator<T> norm_row(T* y, const T* x, const T* weight, int64_t width, double epsilon) {
  using Acc = Accumulator<T>;
  const Acc rstd = Acc{1} / std::sqrt(mean_square(x, width) + static_cast<Acc>(epsilon));
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    // Rounded to T before the weight, as HybridNorm's code does.
    y[i] = round_to<T>(static_cast<Acc>(x[i]) * rstd) * static_cast<Acc>(weight[i]);
  }
  return rstd;
}

/// One row of the backward; `partial` [width] takes the row's share of dweight.
template <class T>
struct NormBackwardRow {
  using Acc = Accumulator<T>;
  T* dx;
  const T* dy;
  const T* x;
  const T* weight;
  const T* dresidual;  // may be null
  int64_t width;

  void run(Acc rstd, Acc* partial) const {
    Acc dot{};
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < width; ++i) {
      const Acc product = static_cast<Acc>(dy[i]) * static_cast<Acc>(x[i]);
      partial[i] += product * rstd;
      dot += product * static_cast<Acc>(weight[i]);
    }
    const Acc along_x = dot * rstd * rstd * rstd / static_cast<Acc>(width);
    // NOLINTNEXTLINE(bugprone-branch-clone): the check compares loops without their bodies
    if (dresidual == nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) dx[i] = gradient(i, rstd, along_x);
    } else {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i)
        dx[i] = gradient(i, rstd, along_x) + static_cast<Acc>(dresidual[i]);
    }
  }

  /// dx = rstd * (dy * weight - x * rstd * mean(dy * weight * x * rstd)).
  Acc gradient(int64_t i, Acc rstd, Acc along_x) const {
    return static_cast<Acc>(dy[i]) * static_cast<Acc>(weight[i]) * rstd -
           static_cast<Acc>(x[i]) * along_x;
  }
};

}  // namespace

void CpuBackend::rms_norm_forward_impl(const Tensor& y, const Tensor& rstd, const Tensor& x,
                                       const Tensor& weight, double epsilon) {
  dispatch_float(x.dtype, [&]<class T>() {
    const int64_t width = x.shape.back();
    auto* inverse = rstd.as<Accumulator<T>>();
    const auto rows = [&, out = y.as<T>(), in = x.as<T>(), w = weight.as<T>()](int64_t begin,
                                                                               int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        inverse[row] = norm_row(out + row * width, in + row * width, w, width, epsilon);
    };
    parallel_ranges(num_threads_, x.shape.rows(), row_grain(width), rows);
  });
}

void CpuBackend::add_rms_norm_forward_impl(const AddRmsNorm& arguments) {
  dispatch_float(arguments.a.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const int64_t width = arguments.a.shape.back();
    T* sum = arguments.sum.as<T>();
    T* y = arguments.y.as<T>();
    const T* a = arguments.a.as<T>();
    const T* b = arguments.b.as<T>();
    const T* weight = arguments.weight.as<T>();
    Acc* rstd = arguments.rstd.as<Acc>();
    const auto rows = [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t first = row * width;
#pragma omp simd
        for (int64_t i = first; i < first + width; ++i) sum[i] = static_cast<Acc>(a[i]) + b[i];
        rstd[row] = norm_row(y + first, sum + first, weight, width, arguments.epsilon);
      }
    };
    parallel_ranges(num_threads_, arguments.a.shape.rows(), row_grain(width), rows);
  });
}

void CpuBackend::rms_norm_backward_impl(const RmsNormBackward& arguments) {
  dispatch_float(arguments.x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const int64_t width = arguments.x.shape.back();
    const FixedParts split(arguments.x.shape.rows());
    Acc* partial = workspace<Acc>(split.parts * width);
    T* dx = arguments.dx.as<T>();
    const T* dy = arguments.dy.as<T>();
    const T* x = arguments.x.as<T>();
    const Acc* rstd = arguments.rstd.as<Acc>();
    const T* weight = arguments.weight.as<T>();
    const T* residual = arguments.dresidual ? arguments.dresidual.as<T>() : nullptr;
    parallel_ranges(num_threads_, split.parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        Acc* share = partial + part * width;
        std::fill(share, share + width, Acc{0});
        for (int64_t row = split.begin(part); row < split.end(part); ++row) {
          const int64_t at = row * width;
          const T* added = residual == nullptr ? nullptr : residual + at;
          const NormBackwardRow<T> step{dx + at, dy + at, x + at, weight, added, width};
          step.run(rstd[row], share);
        }
      }
    });
    add_parts(arguments.dweight.as<Acc>(), partial, split.parts, width);
  });
}

}  // namespace phalanx
