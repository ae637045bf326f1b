// Some positions (dim -2) of a tensor: taken out as one dense tensor, and added back.
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"

namespace phalanx {
namespace {

/// Calls body(row of `whole`, row of `part`, rows) for stretches of rows that lie together in both,
/// where `part` holds positions `runs` of `whole`.
template <class Body>
void for_each_stretch(const Tensor& whole, const Tensor& part, std::span<const PositionRange> runs,
                      int num_threads, const Body& body) {
  const int64_t positions = whole.shape[-2];
  const int64_t kept = part.shape[-2];
  if (part.numel() == 0) return;
  const int64_t outer = part.shape.rows() / kept;
  int64_t first = 0;  // of the run, along `part`
  for (const PositionRange& run : runs) {
    const int64_t count = run.size();
    const auto rows = [&, first](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t within = begin % count;
        const int64_t stretch = std::min(end - begin, count - within);
        body(begin / count * positions + run.begin + within, begin / count * kept + first + within,
             stretch);
        begin += stretch;
      }
    };
    parallel_ranges(num_threads, outer * count, row_grain(whole.shape.back()), rows);
    first += count;
  }
}

}  // namespace

void CpuBackend::gather_positions_impl(const Tensor& y, const Tensor& x,
                                       std::span<const PositionRange> runs) {
  const int64_t row_bytes = x.shape.back() * dtype_bytes(x.dtype);
  char* target = static_cast<char*>(y.data);
  const char* source = static_cast<const char*>(x.data);
  for_each_stretch(x, y, runs, num_threads_, [=](int64_t whole, int64_t part, int64_t rows) {
    std::memcpy(target + part * row_bytes, source + whole * row_bytes,
                static_cast<size_t>(rows * row_bytes));
  });
}

void CpuBackend::accumulate_positions_impl(const Tensor& y, const Tensor& x,
                                           std::span<const PositionRange> runs) {
  dispatch_float(x.dtype, [&]<class T>() {
    using Real = Accumulator<T>;
    const int64_t width = x.shape.back();
    Real* sums = y.as<Real>();
    const T* added = x.as<T>();
    for_each_stretch(y, x, runs, num_threads_, [=](int64_t whole, int64_t part, int64_t rows) {
      Real* target = sums + whole * width;
      const T* source = added + part * width;
#pragma omp simd
      for (int64_t i = 0; i < rows * width; ++i) target[i] += static_cast<Real>(source[i]);
    });
  });
}

}  // namespace phalanx
