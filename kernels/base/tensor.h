// Tensor: a non-owning view of a dense row-major array of up to five dims. Cheap to copy.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/base/dtype.h"
#include "kernels/base/error.h"

namespace phalanx {

enum class Device : uint8_t { cpu, cuda };

constexpr const char* device_name(Device device) {
  return device == Device::cpu ? "cpu" : "cuda";
}

/// Sizes of a dense row-major tensor, outermost first; at most five dims.
class Shape {
 public:
  static constexpr int kMaxRank = 5;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) {
    check(dims.size() <= kMaxRank, "a shape has at most 5 dims, got ", dims.size());
    for (const int64_t dim : dims) append(dim);
  }

  int rank() const { return rank_; }
  int64_t operator[](int dim) const {
    return dims_[static_cast<size_t>(dim < 0 ? dim + rank_ : dim)];
  }
  int64_t back() const { return rank_ <= 0 ? 1 : dims_[static_cast<size_t>(rank_ - 1)]; }
  int64_t numel() const {
    int64_t product = 1;
    for (size_t dim = 0; dim < rank_; ++dim) product *= dims_[dim];
    return product;
  }
  /// Product of all dims but the last.
  int64_t rows() const {
    int64_t product = 1;
    for (size_t dim = 0; dim + 1 < rank_; ++dim) product *= dims_[dim];
    return product;
  }
  Shape with_last(int64_t last) const { return with_dim(rank_ - 1, last); }
  Shape with_dim(int dim, int64_t size) const {
    Shape result = *this;
    result.dims_[static_cast<size_t>(dim)] = size;
    return result;
  }
  bool operator==(const Shape& other) const {
    if (rank_ != other.rank_) return false;
    return std::equal(dims_.begin(), dims_.begin() + rank_, other.dims_.begin());
  }
  /// "[4, 2, 1, 256]".
  std::string to_string() const;

 private:
  void append(int64_t dim) {
    check(dim >= 0, "a tensor dim cannot be negative: ", dim);
    dims_[rank_++] = dim;
  }
  std::array<int64_t, kMaxRank> dims_{};
  uint8_t rank_ = 0;  // narrow: g++ then sees that indices stay small
};

/// A view: pointer, shape, dtype, device. Owns nothing; whoever made the memory (an arena, a
/// parameter store) outlives it. No arithmetic. Usable on any thread.
struct Tensor {
  void* data = nullptr;
  Shape shape;
  DType dtype = DType::f32;
  Device device = Device::cpu;

  int64_t numel() const { return shape.numel(); }
  int64_t bytes() const { return numel() * dtype_bytes(dtype); }
  /// True for a tensor that was given (an optional argument that is absent has no dims).
  explicit operator bool() const { return shape.rank() > 0; }

  /// Typed pointer to the first element; throws if T is not the tensor's element type.
  template <class T>
  T* as() const {
    // The text is made only on failure, because ops call this on every step.
    if (DTypeOf<T>::value != dtype)
      fail("tensor ", shape.to_string(), " holds ", dtype_name(dtype), ", not ",
           dtype_name(DTypeOf<T>::value));
    return static_cast<T*>(data);
  }

  /// The same elements under another shape of equal size.
  Tensor view(const Shape& other) const;
  /// The matrix [rows, last dim].
  Tensor as_matrix() const { return view({shape.rows(), shape.back()}); }
  /// Entries [begin, end) of the outermost dim.
  Tensor slice(int64_t begin, int64_t end) const;
};

/// View of `data` as a CPU tensor.
template <class T>
Tensor cpu_tensor(T* data, const Shape& shape) {
  return {.data = const_cast<std::remove_const_t<T>*>(data),
          .shape = shape,
          .dtype = DTypeOf<std::remove_const_t<T>>::value,
          .device = Device::cpu};
}

}  // namespace phalanx
