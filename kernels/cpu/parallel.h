// Splitting loops over OpenMP threads, with results that do not depend on how many there are.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace phalanx {

/// Calls body(begin, end) on up to `num_threads` threads with shares of [0, count) cut at multiples
/// of `grain`. Counts of one grain run on the caller, because waking threads costs microseconds.
template <class Body>
void parallel_ranges(int num_threads, int64_t count, int64_t grain, const Body& body) {
  const int64_t grains = (count + grain - 1) / grain;
  const auto threads = static_cast<int>(std::min<int64_t>(num_threads, grains));
  if (threads <= 1) {
    if (count > 0) body(int64_t{0}, count);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    // The team may be smaller than asked for, so shares follow its real size.
    const int64_t team = omp_get_num_threads();
    const int64_t thread = omp_get_thread_num();
    const int64_t begin = std::min(count, grains * thread / team * grain);
    const int64_t end = std::min(count, grains * (thread + 1) / team * grain);
    if (begin < end) body(begin, end);
  }
}

/// Elements that are worth a thread of their own in element-wise loops.
constexpr int64_t kElementGrain = 16384;

/// Rows that together have about kElementGrain elements.
inline int64_t row_grain(int64_t row_elements) {
  return std::max<int64_t>(1, kElementGrain / std::max<int64_t>(1, row_elements));
}

/// A fixed split of `count` rows into parts for partial sums: a function of `count` only, so sums
/// have the same bits on any number of threads.
struct FixedParts {
  static constexpr int64_t kMaxParts = 64;

  explicit FixedParts(int64_t rows, int64_t min_rows = 16)
      : count(rows), parts(std::clamp<int64_t>(rows / min_rows, 1, kMaxParts)) {}
  int64_t begin(int64_t part) const { return count * part / parts; }
  int64_t end(int64_t part) const { return count * (part + 1) / parts; }

  int64_t count;
  int64_t parts;
};

/// total[i] += sum over parts of partial[part * width + i], in the order of the parts.
template <class T>
void add_parts(T* total, const T* partial, int64_t parts, int64_t width) {
  for (int64_t part = 0; part < parts; ++part) {
    const T* share = partial + part * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) total[i] += share[i];
  }
}

}  // namespace phalanx
