// Vector<Real>: one SIMD register of f32 or f64, on the compiler's vector extension, as wide as
// the build allows (AVX-512, AVX, SSE2). The only CPU file that asks which instructions exist.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/base/dtype.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace phalanx {

#if defined(__AVX512F__)
inline constexpr int64_t kVectorBytes = 64;
inline constexpr int kProductVectors = 4;  // columns of a register block, in vectors
#elif defined(__AVX__)
inline constexpr int64_t kVectorBytes = 32;
inline constexpr int kProductVectors = 2;  // 16 registers: 4 x 2 sums, 2 columns, 1 broadcast
#else
inline constexpr int64_t kVectorBytes = 16;
inline constexpr int kProductVectors = 2;
#endif

/// Constants of exp2 per type. `magic` = 1.5 * 2^(mantissa bits): adding it rounds to an integer
/// and leaves that integer in the low bits. 2^f = 1 + f*q(f) on |f| <= 1/2, so exp2(0) is exactly
/// 1: a row whose maximum did not move is rescaled by exactly 1.
template <class Real>
struct Exp2Constants;
template <>
struct Exp2Constants<float> {
  static constexpr float magic = 0x1.8p23F;
  static constexpr int mantissa_bits = 23;
  static constexpr float smallest = -126.0F;
  // Interpolation at Chebyshev nodes, relative error below 5e-09 before rounding.
  static constexpr float coefficients[] = {6.931471880e-01F, 2.402265076e-01F, 5.550357114e-02F,
                                           9.618082557e-03F, 1.339086336e-03F, 1.545316294e-04F};
};
template <>
struct Exp2Constants<double> {
  static constexpr double magic = 0x1.8p52;
  static constexpr int mantissa_bits = 52;
  static constexpr double smallest = -1022.0;
  // Taylor: ln(2)^(k+1) / (k+1)!, relative error below 5e-18 before rounding.
  static constexpr double coefficients[] = {
      6.93147180559945286e-01, 2.40226506959100694e-01, 5.55041086648215762e-02,
      9.61812910762847688e-03, 1.33335581464284411e-03, 1.54035303933816061e-04,
      1.52527338040598377e-05, 1.32154867901443053e-06, 1.01780860092396960e-07,
      7.05491162080112088e-09, 4.44553827187081007e-10, 2.56784359934881958e-11,
      1.36914888539041241e-12};
};

template <class Real>
struct Vector {
  using Integer = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
  typedef Real Type __attribute__((vector_size(kVectorBytes)));
  typedef Integer IntegerType __attribute__((vector_size(kVectorBytes)));
  static constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(Real));

  static Type load(const Real* source) {
    Type x;
    std::memcpy(&x, source, sizeof(x));
    return x;
  }
  static IntegerType load_integers(const Integer* source) {
    IntegerType x;
    std::memcpy(&x, source, sizeof(x));
    return x;
  }
  static void store(Real* target, Type x) { std::memcpy(target, &x, sizeof(x)); }
  static Type broadcast(Real x) { return x - Type{}; }
  static IntegerType broadcast_integer(int64_t x) {
    return static_cast<Integer>(x) - IntegerType{};
  }
  /// Makes the compiler hold x in a register: it would rather load x again for every use, and then
  /// loads, not multiply-adds, bound a product.
  static void hold(Type& x) {
#if defined(__AVX512F__)
    asm("" : "+v"(x));
#elif defined(__x86_64__)
    asm("" : "+x"(x));
#endif
  }
  static Type max(Type a, Type b) {
    return a > b ? a : b;
  }

  /// 2^x for x <= 1 or so; exactly 0 below the smallest normal number (so for -infinity), NaN
  /// stays NaN. Relative error below 2 ulp.
  static Type exp2(Type x) {
    using Constants = Exp2Constants<Real>;
    constexpr int kTerms = std::extent_v<decltype(Constants::coefficients)>;
    const Type smallest = broadcast(Constants::smallest);
    const Type clamped = x < smallest ? smallest : x;
    const Type shifted = clamped + Constants::magic;
    const Type f = clamped - (shifted - Constants::magic);
    Type y = broadcast(Constants::coefficients[kTerms - 1]);
#pragma GCC unroll 16
    for (int i = kTerms - 2; i >= 0; --i) y = y * f + Constants::coefficients[i];
    y = y * f + Real{1};
    const auto scaled = reinterpret_cast<IntegerType>(y) +
                        (reinterpret_cast<IntegerType>(shifted) << Constants::mantissa_bits);
    return x < smallest ? Type{} : reinterpret_cast<Type>(scaled);
  }
};

/// How tiles of a compute dtype T are held and multiplied. `Stored` is what tiles hold; kPack
/// consecutive values along a sum are multiplied by one instruction (2 for bf16 dot products,
/// else 1). load_values and store_values convert one vector between memory and Real.
template <class T>
struct TileTraits {
  using Real = T;
  using Stored = T;
  static constexpr int64_t kPack = 1;
  using Lanes = Vector<Real>;
  using Type = typename Lanes::Type;

  static Type multiply_add(const Stored* a, Type b, Type c) { return *a * b + c; }
  static Type load_packed(const Stored* source) { return Lanes::load(source); }
  static Type load_values(const T* source) { return Lanes::load(source); }
  static void store_values(T* target, Type x) { Lanes::store(target, x); }
};

#ifdef __AVX512BF16__
template <>
struct TileTraits<BFloat16> {
  using Real = float;
  using Stored = BFloat16;
  static constexpr int64_t kPack = 2;
  using Lanes = Vector<float>;
  using Type = Lanes::Type;

  static Type multiply_add(const Stored* a, Type b, Type c) {
    int32_t pair;
    std::memcpy(&pair, a, sizeof(pair));
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)),
                            reinterpret_cast<__m512bh>(b));
  }
  static Type load_packed(const Stored* source) {
    Type x;
    std::memcpy(&x, source, sizeof(x));
    return x;
  }
  static Type load_values(const BFloat16* source) {
    return reinterpret_cast<Type>(__builtin_convertvector(load_half(source), Words) << 16);
  }
  static void store_values(BFloat16* target, Type x) {
    const Half rounded = round_half(x);
    std::memcpy(static_cast<void*>(target), &rounded, sizeof(rounded));
  }
  /// target = first[0], second[0], first[1], second[1], ...
  static void store_interleaved(Stored* target, Type first, Type second) {
    interleave(target, round_half(first), round_half(second));
  }
  static void interleave_values(Stored* target, const Stored* first, const Stored* second) {
    interleave(target, load_half(first), load_half(second));
  }

 private:
  typedef uint16_t Half __attribute__((vector_size(32)));
  typedef uint32_t Words __attribute__((vector_size(64)));
  static Half round_half(Type x) { return reinterpret_cast<Half>(_mm512_cvtneps_pbh(x)); }
  static Half load_half(const BFloat16* source) {
    Half x;
    std::memcpy(&x, source, sizeof(x));
    return x;
  }
  static void interleave(Stored* target, Half first, Half second) {
    const auto pairs =
        __builtin_shufflevector(first, second, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7,
                                23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    std::memcpy(static_cast<void*>(target), &pairs, sizeof(pairs));
  }
};
#else
/// Without bf16 dot products tiles are widened to f32 when they are loaded.
template <>
struct TileTraits<BFloat16> : TileTraits<float> {
  using TileTraits<float>::store_values;
  static Type load_values(const BFloat16* source) {
    float values[Lanes::kLanes];
    for (int64_t i = 0; i < Lanes::kLanes; ++i) values[i] = source[i];
    return Lanes::load(values);
  }
  static void store_values(BFloat16* target, Type x) {
    for (int64_t i = 0; i < Lanes::kLanes; ++i) target[i] = BFloat16(x[i]);
  }
};
#endif

}  // namespace phalanx
