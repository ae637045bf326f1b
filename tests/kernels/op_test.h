// Shared by all op tests: a backend under test with guarded, NaN-poisoned tensors.
//
// A test fixture of ops derives from OpTest and is instantiated once:
//   INSTANTIATE_TEST_SUITE_P(Ops, MyOps, testing::ValuesIn(op_cases()), op_case_name);
// `op_cases` lists devices x dtypes; a further backend joins there and runs every table.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "kernels/make_backend.h"
#include "tests/kernels/op_values.h"
#include "tests/test_device.h"

namespace phalanx::test {

/// A backend plus the tensors of one test. Every tensor is followed by a guard that must survive.
class OpBench {
 public:
  explicit OpBench(Device device, int num_threads = 0)
      : backend_(make_backend(device, {.num_threads = num_threads})) {}

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

  /// The same beginning `elements` after an aligned address, as slices do.
  Tensor poisoned_from(int64_t elements, const Shape& shape, DType dtype) {
    const Tensor flat = poisoned({elements + shape.numel()}, dtype);
    return flat.slice(elements, flat.numel()).view(shape);
  }
  Tensor upload_from(int64_t elements, const Array& array, DType dtype) {
    const Tensor tensor = poisoned_from(elements, array.shape, dtype);
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

/// Dtypes that every op table runs on, on the device under test.
inline std::vector<OpCase> op_cases() {
  const Device device = test_device();
  return {{device, DType::f64}, {device, DType::f32}, {device, DType::bf16}};
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
