// What tests of parallel layers share: a rank's store, backend and arenas, and pieces of reference
// tensors.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/base/arena.h"
#include "kernels/cpu/cpu_backend.h"
#include "parallel/parameter.h"

namespace phalanx::test {

/// Host values of a tensor as f64.
inline std::vector<double> to_doubles(const Tensor& x) {
  std::vector<double> values(static_cast<size_t>(x.numel()));
  dispatch_float(x.dtype, [&]<class T>() {
    for (int64_t i = 0; i < x.numel(); ++i)
      values[static_cast<size_t>(i)] = static_cast<double>(x.as<T>()[i]);
  });
  return values;
}

/// A tensor with its own memory.
class OwnTensor {
 public:
  OwnTensor(const Shape& shape, DType dtype)
      : bytes_(static_cast<size_t>(shape.numel() * dtype_bytes(dtype))),
        tensor_{bytes_.data(), shape, dtype, Device::cpu} {}
  /// Normal(0, 1) values from `name`.
  OwnTensor(const Shape& shape, DType dtype, const std::string& name) : OwnTensor(shape, dtype) {
    const Philox random(7, name);
    dispatch_float(dtype, [&]<class T>() {
      for (int64_t i = 0; i < shape.numel(); ++i)
        tensor_.as<T>()[i] = static_cast<T>(
            static_cast<float>(random.truncated_normal(static_cast<uint64_t>(i), 3)));
    });
  }
  const Tensor& operator()() const { return tensor_; }

 private:
  std::vector<char> bytes_;
  Tensor tensor_;
};

/// Columns [begin, end) of a matrix.
inline std::vector<double> columns_of(const Tensor& x, int64_t begin, int64_t end) {
  const std::vector<double> all = to_doubles(x);
  std::vector<double> part;
  for (int64_t row = 0; row < x.shape.rows(); ++row)
    for (int64_t column = begin; column < end; ++column)
      part.push_back(all[static_cast<size_t>(row * x.shape.back() + column)]);
  return part;
}

inline void set_values(const Tensor& x, const std::vector<double>& values) {
  ASSERT_EQ(x.numel(), static_cast<int64_t>(values.size()));
  dispatch_float(x.dtype, [&]<class T>() {
    for (int64_t i = 0; i < x.numel(); ++i)
      x.as<T>()[i] = static_cast<T>(static_cast<float>(values[static_cast<size_t>(i)]));
  });
}

/// The local rectangle of `parameter` in the values of the whole tensor.
inline std::vector<double> piece_of(const Parameter& parameter, const std::vector<double>& whole) {
  const Shape local = parameter.matrix_shape();
  const int64_t width =
      parameter.spec.global_shape.rank() == 2 ? parameter.spec.global_shape[1] : 1;
  std::vector<double> piece;
  for (int64_t row = 0; row < local[0]; ++row)
    for (int64_t column = 0; column < local[1]; ++column)
      piece.push_back(whole[static_cast<size_t>((parameter.offset[0] + row) * width +
                                                parameter.offset[1] + column)]);
  return piece;
}

/// |actual - expected| <= 8 eps sqrt(terms) scale: two orders of the same sum of `terms` products
/// of size `scale` differ by rounding only.
inline void expect_near(const std::vector<double>& actual, const std::vector<double>& expected,
                        DType dtype, double terms, double scale, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  const double tolerance = 8 * dtype_epsilon(dtype) * std::sqrt(terms) * scale;
  for (size_t i = 0; i < actual.size(); ++i)
    ASSERT_NEAR(actual[i], expected[i], tolerance) << what << " element " << i;
}

/// A rank's arenas.
struct TestMemory {
  std::vector<char> saved_block = std::vector<char>(1 << 20);
  std::vector<char> scratch_block = std::vector<char>(1 << 20);
  Arena saved{"saved", saved_block.data(), 1 << 20, Device::cpu};
  Arena scratch{"scratch", scratch_block.data(), 1 << 20, Device::cpu};
  Memory memory{saved, scratch};
};

}  // namespace phalanx::test
