// Element types of tensors, and `dispatch_float`, the one place that turns a DType into a C++ type.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/base/error.h"

namespace phalanx {

enum class DType : uint8_t { f64, f32, bf16, i64, i32, u8 };

/// Bytes per element.
constexpr int64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "f64";
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::i64:
      return "i64";
    case DType::i32:
      return "i32";
    case DType::u8:
      return "u8";
  }
  return "?";
}

/// Relative rounding step of a floating type (distance from 1 to the next number).
constexpr double dtype_epsilon(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 0x1p-52;
    case DType::f32:
      return 0x1p-23;
    case DType::bf16:
      return 0x1p-7;
    default:
      return 0.0;
  }
}

/// bfloat16: the upper half of an IEEE single, rounded to nearest even. NaN stays NaN.
struct BFloat16 {
  uint16_t bits = 0;

  BFloat16() = default;
  // NOLINTNEXTLINE(google-explicit-constructor): arithmetic code converts both ways by design.
  constexpr BFloat16(float value) { *this = value; }
  /// Beside the constructor, because g++ vectorises no loop that stores a temporary object; and
  /// with a select, not a branch, for the same loops.
  constexpr BFloat16& operator=(float value) {
    const auto word = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = word + 0x7fffU + ((word >> 16) & 1U);
    const uint32_t quiet = word | 0x00400000U;
    const bool is_nan = (word & 0x7fffffffU) > 0x7f800000U;
    bits = static_cast<uint16_t>((is_nan ? quiet : rounded) >> 16);
    return *this;
  }
  // NOLINTNEXTLINE(google-explicit-constructor)
  constexpr operator float() const {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
};
static_assert(sizeof(BFloat16) == 2);

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::u8;
};

/// The type sums are kept in: f64 for f64, f32 for f32 and bf16.
template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

constexpr DType accumulator_dtype(DType dtype) {
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

/// Calls `body.template operator()<T>()` with the C++ type of a floating `dtype`.
/// Throws on integer types.
template <class Body>
decltype(auto) dispatch_float(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f64:
      return body.template operator()<double>();
    case DType::f32:
      return body.template operator()<float>();
    case DType::bf16:
      return body.template operator()<BFloat16>();
    default:
      break;
  }
  fail("a floating type is needed here, not ", dtype_name(dtype), "; use f64, f32 or bf16");
}

}  // namespace phalanx
