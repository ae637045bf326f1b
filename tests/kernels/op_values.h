// Arrays of op tests in f64: what reference loops read and write, random ones, the one tolerance,
// and directional finite differences.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace phalanx::test {

/// A host array in f64: what reference loops read and write.
struct Array {
  Shape shape;
  std::vector<double> values;

  explicit Array(const Shape& dims, double value = 0.0)
      : shape(dims), values(static_cast<size_t>(dims.numel()), value) {}
  double& operator[](int64_t i) { return values[static_cast<size_t>(i)]; }
  double operator[](int64_t i) const { return values[static_cast<size_t>(i)]; }
  int64_t numel() const { return static_cast<int64_t>(values.size()); }
};

/// `value` as an element of `dtype` holds it.
inline double round_to(DType dtype, double value) {
  if (dtype == DType::f64) return value;
  if (dtype == DType::bf16) return BFloat16(static_cast<float>(value));
  return static_cast<float>(value);
}

/// Normal(0, stddev) cut at 3 sigma, already rounded to `dtype`, so that op and reference read the
/// same numbers.
inline Array random_array(const Shape& shape, DType dtype, uint64_t seed, double stddev = 1.0) {
  const Philox random(seed, "test");
  Array array(shape);
  for (int64_t i = 0; i < array.numel(); ++i)
    array[i] = round_to(dtype, stddev * random.truncated_normal(static_cast<uint64_t>(i), 3.0));
  return array;
}

/// Integers in [begin, end).
inline Array random_integers(const Shape& shape, int64_t begin, int64_t end, uint64_t seed) {
  const Philox random(seed, "integers");
  Array array(shape);
  for (int64_t i = 0; i < array.numel(); ++i)
    array[i] = static_cast<double>(begin) + std::floor(random.uniform(static_cast<uint64_t>(i)) *
                                                       static_cast<double>(end - begin));
  return array;
}

inline double dot(const Array& a, const Array& b) {
  double sum = 0.0;
  for (int64_t i = 0; i < a.numel(); ++i) sum += a[i] * b[i];
  return sum;
}

/// c in `c * eps(dtype) * sqrt(reduction length) * scale`, for every op test of the project.
constexpr double kToleranceFactor = 4.0;

/// Allowed absolute error of a result of size `scale` summed over `reduction_length` terms in the
/// accumulator of `compute`, with values rounded to `compute` on the way.
inline double tolerance(DType compute, int64_t reduction_length, double scale) {
  const double summed = dtype_epsilon(accumulator_dtype(compute)) *
                        std::sqrt(static_cast<double>(std::max<int64_t>(reduction_length, 1)));
  const double rounded = accumulator_dtype(compute) == compute ? 0.0 : dtype_epsilon(compute);
  return kToleranceFactor * (summed + rounded) * scale;
}

inline double largest_magnitude(const Array& array) {
  double largest = 0.0;
  for (const double value : array.values)
    if (std::isfinite(value)) largest = std::max(largest, std::abs(value));
  return largest;
}

/// Element by element |actual - expected| <= allowed; infinities must agree; NaN never passes.
inline void expect_within(const Array& actual, const Array& expected, double allowed,
                          const std::string& what) {
  ASSERT_EQ(actual.numel(), expected.numel()) << what;
  int64_t wrong = 0;
  for (int64_t i = 0; i < actual.numel(); ++i) {
    const bool good = std::isinf(expected[i]) ? actual[i] == expected[i]
                                              : std::abs(actual[i] - expected[i]) <= allowed;
    if (good) continue;
    if (++wrong <= 3)
      ADD_FAILURE() << what << " element " << i << ": " << actual[i] << ", expected " << expected[i]
                    << " +- " << allowed;
  }
  EXPECT_EQ(wrong, 0) << what << ": wrong elements of " << actual.numel();
}

/// As expect_within with `tolerance`; scale defaults to the largest expected magnitude. Pass a
/// larger scale where big terms cancel.
inline void expect_close(const Array& actual, const Array& expected, DType compute,
                         int64_t reduction_length, const std::string& what, double scale = 0.0) {
  const double size = std::max(scale, largest_magnitude(expected));
  expect_within(actual, expected, tolerance(compute, reduction_length, size), what);
}

/// Derivative of `loss` at x along `direction` by the five-point rule (error of order step^4).
inline double directional_difference(const std::function<double(const Array&)>& loss,
                                     const Array& x, const Array& direction, double step = 2e-4) {
  const auto at = [&](double distance) {
    Array moved = x;
    for (int64_t i = 0; i < x.numel(); ++i) moved[i] += distance * direction[i];
    return loss(moved);
  };
  return (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step))) / (12.0 * step);
}

}  // namespace phalanx::test
