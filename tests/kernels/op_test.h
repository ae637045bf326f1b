// Shared by all op tests: a backend under test with guarded, NaN-poisoned tensors, f64 arrays for
// reference loops, the one tolerance, and directional finite differences.
//
// A test fixture of ops derives from OpTest and is instantiated once:
//   INSTANTIATE_TEST_SUITE_P(Ops, MyOps, testing::ValuesIn(op_cases()), op_case_name);
// `op_cases` lists devices x dtypes; a further backend joins there and runs every table.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
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

/// A backend plus the tensors of one test. Every tensor is followed by a guard that must survive.
class OpBench {
 public:
  explicit OpBench(Device device, int num_threads = 0)
      : backend_(make_backend(device, num_threads)) {}

  Backend& backend() { return *backend_; }

  /// A tensor full of NaN (0xff bytes; -1 for integers): an op must overwrite all of it.
  Tensor poisoned(const Shape& shape, DType dtype) {
    Tensor tensor{.data = nullptr, .shape = shape, .dtype = dtype, .device = backend_->device()};
    const int64_t bytes = tensor.bytes() + kGuardBytes;
    blocks_.push_back(backend_->allocate(bytes));
    tensor.data = blocks_.back().get();
    tensors_.push_back(tensor);
    Tensor raw = tensor;
    raw.shape = {bytes};
    raw.dtype = DType::u8;
    const std::vector<uint8_t> poison(static_cast<size_t>(bytes), 0xff);
    backend_->upload(raw, poison.data());
    return tensor;
  }

  Tensor upload(const Array& array, DType dtype) {
    const Tensor tensor = poisoned(array.shape, dtype);
    write(tensor, array);
    return tensor;
  }

  void write(const Tensor& tensor, const Array& array) {
    if (tensor.dtype == DType::i32) return write_as<int32_t>(tensor, array);
    dispatch_float(tensor.dtype, [&]<class T>() { write_as<T>(tensor, array); });
  }

  Array download(const Tensor& tensor) {
    return dispatch_float(tensor.dtype, [&]<class T>() {
      std::vector<T> host(static_cast<size_t>(tensor.numel()));
      backend_->download(host.data(), tensor);
      Array array(tensor.shape);
      for (int64_t i = 0; i < array.numel(); ++i)
        array[i] = static_cast<double>(host[static_cast<size_t>(i)]);
      return array;
    });
  }

  /// Fails the test if an op wrote beyond the end of a tensor.
  void expect_guards_intact() {
    for (const Tensor& tensor : tensors_) {
      Tensor guard{.data = static_cast<char*>(tensor.data) + tensor.bytes(),
                   .shape = {kGuardBytes},
                   .dtype = DType::u8,
                   .device = tensor.device};
      std::vector<uint8_t> bytes(kGuardBytes);
      backend_->download(bytes.data(), guard);
      EXPECT_EQ(std::count(bytes.begin(), bytes.end(), 0xff), kGuardBytes)
          << "written beyond tensor " << tensor.shape.to_string();
    }
  }

 private:
  static constexpr int64_t kGuardBytes = 128;

  template <class T>
  void write_as(const Tensor& tensor, const Array& array) {
    std::vector<T> host(static_cast<size_t>(array.numel()));
    for (int64_t i = 0; i < array.numel(); ++i) {
      if constexpr (std::is_same_v<T, BFloat16>)
        host[static_cast<size_t>(i)] = static_cast<float>(array[i]);
      else
        host[static_cast<size_t>(i)] = static_cast<T>(array[i]);
    }
    backend_->upload(tensor, host.data());
  }

  std::unique_ptr<Backend> backend_;
  std::vector<std::shared_ptr<void>> blocks_;
  std::vector<Tensor> tensors_;
};

struct OpCase {
  Device device;
  DType dtype;
};

/// Devices x dtypes that every op table runs on.
inline std::vector<OpCase> op_cases() {
  return {{Device::cpu, DType::f64}, {Device::cpu, DType::f32}, {Device::cpu, DType::bf16}};
}

inline std::string op_case_name(const testing::TestParamInfo<OpCase>& info) {
  return std::string(device_name(info.param.device)) + "_" + dtype_name(info.param.dtype);
}

/// Fixture: `bench` on the case's device, `dtype` T and `acc` of the case.
class OpTest : public testing::TestWithParam<OpCase> {
 protected:
  void TearDown() override { bench.expect_guards_intact(); }

  OpBench bench{GetParam().device};
  Backend& ops = bench.backend();
  DType dtype = GetParam().dtype;
  DType acc = accumulator_dtype(GetParam().dtype);
};

}  // namespace phalanx::test
