// Random initialisation at global element indices.
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"

namespace phalanx {

void CpuBackend::truncated_normal_impl(const Tensor& w, const TruncatedNormal& options) {
  dispatch_float(w.dtype, [&]<class T>() {
    T* out = w.as<T>();
    const int64_t width = w.shape.back();
    // Logarithms make an element expensive: threads pay off early.
    parallel_ranges(num_threads_, w.numel(), 256, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = options.row_begin + i / width;
        const int64_t column = options.column_begin + i % width;
        const auto index = static_cast<uint64_t>(row * options.global_columns + column);
        const double value = options.stddev * options.random.truncated_normal(index, options.cut);
        out[i] = static_cast<T>(static_cast<Accumulator<T>>(value));
      }
    });
  });
}

}  // namespace phalanx
