// Values that ranks send in the checks of process groups, and what they must become.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "parallel/process_group.h"

namespace phalanx::test {

template <class T>
T value_at(int rank, int64_t i) {
  return static_cast<T>(static_cast<float>((rank * 7 + i * 3) % 16 - 5));
}

template <class T>
std::vector<T> values_of(int rank, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = value_at<T>(rank, i);
  return values;
}

template <class T>
T reduced_value(int size, int64_t i, ReduceOp op) {
  double result = static_cast<double>(value_at<T>(0, i));
  for (int rank = 1; rank < size; ++rank) {
    const double value = static_cast<double>(value_at<T>(rank, i));
    result = op == ReduceOp::sum ? result + value : std::max(result, value);
  }
  return static_cast<T>(static_cast<float>(result));
}

template <class T>
Tensor flat(std::vector<T>& values) {
  return cpu_tensor(values.data(), {static_cast<int64_t>(values.size())});
}

inline void expect_equal(double actual, double expected, const ProcessGroup& group,
                         const char* what, int64_t i) {
  check(actual == expected, what, " on rank ", group.rank(), " of ", group.size(), " element ", i,
        ": ", actual, " instead of ", expected);
}

/// Uneven counts; the variants put the empty pieces at different ranks.
inline std::vector<int64_t> uneven_counts(int size, int variant) {
  std::vector<int64_t> counts;
  for (int rank = 0; rank < size; ++rank) counts.push_back((rank * 5 + variant) % 7);
  return counts;
}

inline int64_t begin_of(const std::vector<int64_t>& counts, int rank) {
  return std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
}

}  // namespace phalanx::test
