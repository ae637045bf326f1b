// Rows of a mixture of experts: sorting choices by expert, moving rows there and back, and one
// product per expert.
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"

namespace phalanx {

/// Counting sort on one thread: a few nanoseconds per choice, next to products of microseconds.
void CpuBackend::sort_by_expert_impl(const Tensor& places, const Tensor& counts,
                                     const Tensor& experts) {
  const int64_t num_experts = counts.numel();
  const auto* expert = experts.as<int32_t>();
  auto* place = places.as<int32_t>();
  auto* count = counts.as<int64_t>();
  auto* next = workspace<int64_t>(num_experts);
  std::fill(count, count + num_experts, 0);
  for (int64_t i = 0; i < experts.numel(); ++i) ++count[expert[i]];
  int64_t begin = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    next[e] = begin;
    begin += count[e];
  }
  for (int64_t i = 0; i < experts.numel(); ++i) place[i] = static_cast<int32_t>(next[expert[i]]++);
}

void CpuBackend::permute_rows_impl(const Tensor& y, const Tensor& x, const Tensor& places) {
  const int64_t copies = places.shape[1];
  const int64_t row_bytes = x.shape.back() * dtype_bytes(x.dtype);
  auto* out = static_cast<char*>(y.data);
  const auto* in = static_cast<const char*>(x.data);
  const auto* place = places.as<int32_t>();
  const int64_t grain = row_grain(copies * x.shape.back());
  parallel_ranges(num_threads_, places.shape[0], grain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin * copies; i < end * copies; ++i)
      std::memcpy(out + place[i] * row_bytes, in + i / copies * row_bytes,
                  static_cast<size_t>(row_bytes));
  });
}

void CpuBackend::combine_rows_impl(const Tensor& y, const Tensor& x, const Tensor& places,
                                   const Tensor& added) {
  dispatch_float(y.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    // Columns at a time, so that the sums stay in registers and the cache nearest to them.
    constexpr int64_t kColumns = 256;
    const int64_t terms = places.shape[1];
    const int64_t width = y.shape.back();
    T* out = y.as<T>();
    const T* in = x.as<T>();
    const Acc* start = added ? added.as<Acc>() : nullptr;
    const auto* place = places.as<int32_t>();
    const auto rows = [=](int64_t begin, int64_t end) {
      Acc sums[kColumns];
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t column = 0; column < width; column += kColumns) {
          const int64_t count = std::min(kColumns, width - column);
          for (int64_t i = 0; i < count; ++i)
            sums[i] = start == nullptr ? Acc{0} : start[row * width + column + i];
          for (int64_t j = row * terms; j < (row + 1) * terms; ++j) {
            const T* source = in + place[j] * width + column;
#pragma omp simd
            for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<Acc>(source[i]);
          }
          T* target = out + row * width + column;
#pragma omp simd
          for (int64_t i = 0; i < count; ++i) target[i] = sums[i];
        }
      }
    };
    parallel_ranges(num_threads_, y.shape.rows(), row_grain(terms * width), rows);
  });
}

void CpuBackend::scale_rows_impl(const Tensor& y, const Tensor& x, const Tensor& factors) {
  dispatch_float(y.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const int64_t width = y.shape.back();
    T* out = y.as<T>();
    const T* in = x.as<T>();
    const Acc* factor = factors.as<Acc>();
    const auto rows = [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
#pragma omp simd
        for (int64_t i = row * width; i < (row + 1) * width; ++i)
          out[i] = factor[row] * static_cast<Acc>(in[i]);
      }
    };
    parallel_ranges(num_threads_, y.shape.rows(), row_grain(width), rows);
  });
}

void CpuBackend::row_dots_impl(const Tensor& dots, const Tensor& a, const Tensor& b) {
  dispatch_float(a.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const int64_t width = a.shape.back();
    Acc* out = dots.as<Acc>();
    const T* left = a.as<T>();
    const T* right = b.as<T>();
    const auto rows = [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        Acc sum{0};
#pragma omp simd reduction(+ : sum)
        for (int64_t i = row * width; i < (row + 1) * width; ++i)
          sum += static_cast<Acc>(left[i]) * static_cast<Acc>(right[i]);
        out[row] = sum;
      }
    };
    parallel_ranges(num_threads_, a.shape.rows(), row_grain(width), rows);
  });
}

void CpuBackend::grouped_matmul_impl(const Tensor& c, const Tensor& a, const Tensor& b,
                                     const GroupedMatmul& options) {
  const bool per_group_result = options.product.a == Transpose::yes;
  const auto matrix_of = [](const Tensor& all, size_t group) {
    const auto g = static_cast<int64_t>(group);
    return all.slice(g, g + 1).as_matrix();
  };
  int64_t begin = 0;
  for (size_t g = 0; g < options.rows.size(); ++g) {
    const int64_t end = begin + options.rows[g];
    const Tensor c_rows = per_group_result ? matrix_of(c, g) : c.as_matrix().slice(begin, end);
    const Tensor b_rows = per_group_result ? b.as_matrix().slice(begin, end) : matrix_of(b, g);
    matmul_.run(c_rows, a.as_matrix().slice(begin, end), b_rows, options.product);
    begin = end;
  }
}

}  // namespace phalanx
