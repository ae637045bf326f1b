// Softmax cross-entropy with z-loss over one rank's columns of the vocabulary.
#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace phalanx {
namespace {

/// Columns of this rank that are not padding.
int64_t real_columns(const Tensor& logits, const CrossEntropyOptions& options) {
  return std::clamp<int64_t>(options.vocab_size - options.vocab_begin, 0, logits.shape.back());
}

template <class T>
Accumulator<T> row_max(const T* row, int64_t columns) {
  auto largest = -std::numeric_limits<Accumulator<T>>::infinity();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < columns; ++i)
    largest = std::max(largest, static_cast<Accumulator<T>>(row[i]));
  return largest;
}

template <class T>
Accumulator<T> row_sum_exp(const T* row, int64_t columns, Accumulator<T> largest) {
  Accumulator<T> sum{};
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < columns; ++i)
    sum += fast_exp(static_cast<Accumulator<T>>(row[i]) - largest);
  return sum;
}

}  // namespace

void CpuBackend::cross_entropy_forward_impl(const Tensor& stats, const Tensor& logits,
                                            const CrossEntropyOptions& options) {
  dispatch_float(logits.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const int64_t width = logits.shape.back();
    const int64_t columns = real_columns(logits, options);
    const T* in = logits.as<T>();
    Acc* out = stats.as<Acc>();
    const auto* targets = options.targets.as<int32_t>();
    const auto rows = [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T* row = in + r * width;
        const int64_t target = targets[r] - options.vocab_begin;
        const bool here = 0 <= target && target < columns;
        out[r * 3] = row_max(row, columns);
        out[r * 3 + 1] = row_sum_exp(row, columns, out[r * 3]);
        out[r * 3 + 2] = here ? static_cast<Acc>(row[target]) : Acc{0};
      }
    };
    parallel_ranges(num_threads_, logits.shape.rows(), row_grain(width), rows);
  });
}

/// d/dlogit [CE + z lse^2] = (1 + 2 z lse) softmax - onehot(target).
void CpuBackend::cross_entropy_backward_impl(const Tensor& logits, const Tensor& stats,
                                             const CrossEntropyOptions& options) {
  dispatch_float(logits.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const int64_t width = logits.shape.back();
    const int64_t columns = real_columns(logits, options);
    T* in_place = logits.as<T>();
    const Acc* stat = stats.as<Acc>();
    const auto* targets = options.targets.as<int32_t>();
    const auto rows = [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        T* row = in_place + r * width;
        const bool counted = targets[r] >= 0;
        if (!counted) {
          std::fill(row, row + width, T{});
          continue;
        }
        const int64_t target = targets[r] - options.vocab_begin;
        const Acc largest = stat[r * 3];
        const double lse = static_cast<double>(largest) + std::log(stat[r * 3 + 1]);
        const auto factor = static_cast<Acc>(options.loss_scale *
                                             (1.0 + 2.0 * options.z_loss * lse) / stat[r * 3 + 1]);
        const bool here = 0 <= target && target < columns;
        const Acc target_logit = here ? static_cast<Acc>(row[target]) : Acc{0};
#pragma omp simd
        for (int64_t i = 0; i < columns; ++i)
          row[i] = fast_exp(static_cast<Acc>(row[i]) - largest) * factor;
        std::fill(row + columns, row + width, T{});
        // Subtracted before rounding to T, because 1 - softmax is small for a learned token.
        if (here)
          row[target] =
              fast_exp(target_logit - largest) * factor - static_cast<Acc>(options.loss_scale);
      }
    };
    parallel_ranges(num_threads_, logits.shape.rows(), row_grain(width), rows);
  });
}

void CpuBackend::cross_entropy_loss_impl(const Tensor& sums, const Tensor& stats,
                                         const CrossEntropyOptions& options) {
  dispatch_float(stats.dtype, [&]<class T>() {
    const T* stat = stats.as<T>();
    const auto* targets = options.targets.as<int32_t>();
    double loss = 0.0;
    double squares = 0.0;
    for (int64_t r = 0; r < stats.shape.rows(); ++r) {
      if (targets[r] < 0) continue;
      const double largest = stat[r * 3];
      const double sum = stat[r * 3 + 1];
      const double lse = largest + std::log(sum);
      loss += lse - static_cast<double>(stat[r * 3 + 2]);
      squares += lse * lse;
    }
    sums.as<double>()[0] += loss;
    sums.as<double>()[1] += squares;
  });
}

}  // namespace phalanx
