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

  /// Tensors made from now on begin `elements` elements behind an aligned address, as slices do.
  void begin_tensors_at(int64_t elements) { lead_ = elements; }

  /// A tensor full of NaN (0xff bytes; -1 for integers): an op must overwrite all of it.
  Tensor poisoned(const Shape& shape, DType dtype) {
    Tensor tensor{.data = nullptr, .shape = shape, .dtype = dtype, .device = backend_->device()};
    const int64_t lead = lead_ * dtype_bytes(dtype);
    Tensor raw = tensor;
    raw.shape = {lead + tensor.bytes() + kGuardBytes};
    raw.dtype = DType::u8;
    blocks_.push_back(backend_->allocate(raw.bytes()));
    raw.data = blocks_.back().get();
    const std::vector<uint8_t> poison(static_cast<size_t>(raw.bytes()), 0xff);
    backend_->upload(raw, poison.data());
    tensor.data = static_cast<char*>(raw.data) + lead;
    guards_.push_back(raw.slice(0, lead));
    guards_.push_back(raw.slice(lead + tensor.bytes(), raw.bytes()));
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

  /// Fails the test if an op wrote before the beginning or beyond the end of a tensor.
  void expect_guards_intact() {
    for (size_t i = 0; i < guards_.size(); ++i) {
      const Tensor& guard = guards_[i];
      std::vector<uint8_t> bytes(static_cast<size_t>(guard.bytes()));
      backend_->download(bytes.data(), guard);
      EXPECT_EQ(std::count(bytes.begin(), bytes.end(), 0xff), guard.bytes())
          << "written " << (i % 2 == 0 ? "before" : "beyond") << " tensor " << i / 2;
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
  std::vector<Tensor> guards_;  // before and beyond each tensor
  int64_t lead_ = 0;            // elements
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
