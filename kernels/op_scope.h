// OpScope: what surrounds every public op: the name for messages, the checks of its arguments, the
// range of the profile.
#pragma once

#include "kernels/base/tensor.h"
#include "kernels/base/trace.h"

namespace phalanx {

/// Lives as long as one op runs. Messages read "matmul: b [3, 5] bf16 must be [5, 3] bf16". Texts
/// are made only on failure, because ops run on every step. Pointers are not looked at: null
/// backends run without memory.
class OpScope {
 public:
  OpScope(const char* op, Device device) : op_(op), device_(device), range_(op, TraceLane::op) {}
  OpScope(const OpScope&) = delete;
  OpScope& operator=(const OpScope&) = delete;

  template <class... Text>
  void require(bool ok, const char* name, const Tensor& tensor, const Text&... text) const {
    if (!ok)
      fail(op_, ": ", name, " ", tensor.shape.to_string(), " ", dtype_name(tensor.dtype), " ",
           text...);
  }

  /// Given, and on the backend's device.
  void placed(const char* name, const Tensor& tensor) const {
    require(static_cast<bool>(tensor), name, tensor, "is missing");
    require(tensor.device == device_, name, tensor, "lies on ", device_name(tensor.device),
            ", this backend on ", device_name(device_));
    if (range_.recording()) range_.add_bytes(tensor);
  }

  /// Work of the op, for profiles.
  void flops(double count) const { range_.add_flops(count); }

  void typed(const char* name, const Tensor& tensor, DType dtype) const {
    placed(name, tensor);
    require(tensor.dtype == dtype, name, tensor, "must be ", dtype_name(dtype));
  }

  void floating(const char* name, const Tensor& tensor) const {
    placed(name, tensor);
    require(dtype_epsilon(tensor.dtype) > 0.0, name, tensor, "must be f64, f32 or bf16");
  }

  void elements(const char* name, const Tensor& tensor, int64_t count) const {
    placed(name, tensor);
    require(tensor.numel() == count, name, tensor, "must have ", count, " elements");
  }

  void elements(const char* name, const Tensor& tensor, int64_t count, DType dtype) const {
    elements(name, tensor, count);
    require(tensor.dtype == dtype, name, tensor, "must be ", dtype_name(dtype));
  }

  /// `tensor` read as a matrix of its last dim.
  void matrix(const char* name, const Tensor& tensor, int64_t rows, int64_t columns,
              DType dtype) const {
    typed(name, tensor, dtype);
    require(tensor.shape.back() == columns && tensor.numel() == rows * columns, name, tensor,
            "must be [", rows, ", ", columns, "]");
  }

  void shape(const char* name, const Tensor& tensor, const Shape& expected, DType dtype) const {
    typed(name, tensor, dtype);
    if (!(tensor.shape == expected)) require(false, name, tensor, "must be ", expected.to_string());
  }

  void rank(const char* name, const Tensor& tensor, int dims) const {
    placed(name, tensor);
    require(tensor.shape.rank() == dims, name, tensor, "must have ", dims, " dims");
  }

  /// `all` [S, B, K, H] holds `one` [S, B, H] at `copy`.
  void copies(const char* one_name, const Tensor& one, const char* all_name, const Tensor& all,
              int64_t copy) const {
    floating(all_name, all);
    rank(all_name, all, 4);
    require(0 <= copy && copy < all.shape[2], all_name, all, "has no copy ", copy);
    matrix(one_name, one, all.shape[0] * all.shape[1], all.shape[3], all.dtype);
  }

 private:
  const char* op_;
  Device device_;
  mutable TraceRange range_;  // what the checks see adds to it
};

}  // namespace phalanx
