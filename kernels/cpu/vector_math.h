// Arithmetic that compilers vectorise: a branch-free exponential and conversions of bf16 spans.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/base/dtype.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace phalanx {

/// e^x with a relative error below 1.5e-7 (checked in tests over the whole range); 0 below
/// -87.33, infinity above 88.37; NaN stays NaN. exp(x) = 2^n e^r with |r| <= ln(2) / 2 and a
/// polynomial of degree 7 for e^r (Cephes, Moshier 1989). Branch-free, so that loops vectorise.
inline float fast_exp(float x) {
  constexpr float kLowest = -87.33F;  // results stay normal numbers
  constexpr float kHighest = 88.37F;
  constexpr float kRoundToInteger = 12582912.0F;  // 1.5 * 2^23: adding it rounds to integers
  const float clamped = std::max(std::min(x, kHighest), kLowest);
  const float shifted = clamped * 1.44269504088896341F + kRoundToInteger;
  const float n = shifted - kRoundToInteger;
  const float r = (clamped - n * 0.693359375F) - n * -2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  const float exp_r = p * (r * r) + (r + 1.0F);
  // The low bits of `shifted` hold n in two's complement.
  const uint32_t exponent = (std::bit_cast<uint32_t>(shifted) + 127U) << 23;
  const float result = exp_r * std::bit_cast<float>(exponent);
  const float not_low = x < kLowest ? 0.0F : result;
  return x > kHighest ? std::numeric_limits<float>::infinity() : not_low;
}
inline double fast_exp(double x) {
  return std::exp(x);
}

/// `x` rounded to T. A function, because g++ vectorises no loop with a bf16 object of its own.
template <class T>
inline Accumulator<T> round_to(Accumulator<T> x) {
  return static_cast<Accumulator<T>>(static_cast<T>(x));
}

/// out[i] = in[i]; the form that loops use to leave and enter bf16.
template <class To, class From>
void convert_span(To* out, const From* in, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_same_v<To, BFloat16>)
      out[i] = static_cast<float>(in[i]);
    else
      out[i] = static_cast<To>(in[i]);
  }
}

#ifdef __AVX512BF16__
/// Sixteen floats per instruction; denormals become zero, which bf16 gradients never notice.
inline void convert_span(BFloat16* out, const float* in, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(in + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), (__m256i)rounded);
  }
  for (; i < count; ++i) out[i] = in[i];
}
#endif

}  // namespace phalanx
