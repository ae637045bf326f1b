// Softmax statistics of a row whose columns are cut over ranks.
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"

namespace phalanx {

/// max = max_r max_r; sum = sum_r sum_r exp(max_r - max); the target's logit is 0 on all ranks but
/// its own. In the order of the ranks, in f64.
void CpuBackend::cross_entropy_merge_impl(const Tensor& stats, const Tensor& parts) {
  dispatch_float(stats.dtype, [&]<class T>() {
    const int64_t ranks = parts.shape[0];
    const int64_t rows = parts.shape[1];
    const T* in = parts.as<T>();
    T* out = stats.as<T>();
    const auto merge = [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        double largest = static_cast<double>(in[row * 3]);
        for (int64_t rank = 1; rank < ranks; ++rank)
          largest = std::max(largest, static_cast<double>(in[(rank * rows + row) * 3]));
        double sum = 0.0;
        double target = 0.0;
        for (int64_t rank = 0; rank < ranks; ++rank) {
          const T* part = in + (rank * rows + row) * 3;
          sum += static_cast<double>(part[1]) * std::exp(static_cast<double>(part[0]) - largest);
          target += static_cast<double>(part[2]);
        }
        out[row * 3] = static_cast<T>(largest);
        out[row * 3 + 1] = static_cast<T>(sum);
        out[row * 3 + 2] = static_cast<T>(target);
      }
    };
    parallel_ranges(num_threads_, rows, row_grain(3 * ranks), merge);
  });
}

}  // namespace phalanx
