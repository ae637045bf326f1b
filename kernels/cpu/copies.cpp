// Copies: between dtypes, and of one PHD copy out of and into [S, B, K, H].
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace phalanx {

void CpuBackend::copy_impl(const Tensor& y, const Tensor& x) {
  if (y.dtype == x.dtype) {
    const int64_t size = dtype_bytes(y.dtype);
    parallel_ranges(num_threads_, y.numel(), kElementGrain, [&](int64_t begin, int64_t end) {
      std::memmove(static_cast<char*>(y.data) + begin * size,
                   static_cast<const char*>(x.data) + begin * size,
                   static_cast<size_t>((end - begin) * size));
    });
    return;
  }
  dispatch_float(y.dtype, [&]<class To>() {
    dispatch_float(x.dtype, [&]<class From>() {
      To* out = y.as<To>();
      const From* in = x.as<From>();
      parallel_ranges(num_threads_, y.numel(), kElementGrain, [=](int64_t begin, int64_t end) {
        convert_span(out + begin, in + begin, end - begin);
      });
    });
  });
}

void CpuBackend::select_copy_impl(const Tensor& y, const Tensor& x, int64_t copy) {
  const int64_t copies = x.shape[2];
  const int64_t row_bytes = x.shape[3] * dtype_bytes(x.dtype);
  auto* out = static_cast<char*>(y.data);
  const auto* in = static_cast<const char*>(x.data);
  const int64_t rows = x.shape[0] * x.shape[1];
  parallel_ranges(num_threads_, rows, row_grain(x.shape[3]), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      std::memcpy(out + row * row_bytes, in + (row * copies + copy) * row_bytes,
                  static_cast<size_t>(row_bytes));
  });
}

void CpuBackend::accumulate_copy_impl(const Tensor& dx, const Tensor& dy, int64_t copy) {
  dispatch_float(dx.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const int64_t copies = dx.shape[2];
    const int64_t width = dx.shape[3];
    T* all = dx.as<T>();
    const T* one = dy.as<T>();
    const int64_t rows = dx.shape[0] * dx.shape[1];
    parallel_ranges(num_threads_, rows, row_grain(width), [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        T* out = all + (row * copies + copy) * width;
        const T* in = one + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) out[i] = static_cast<Acc>(out[i]) + in[i];
      }
    });
  });
}

}  // namespace phalanx
