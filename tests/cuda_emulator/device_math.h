// Intrinsics of one thread: atomics, bit counts, fast mathematics. Included by device_code.h.
#pragma once

#include <math.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

// Blocks of kernels on different streams run at the same time, so atomics are atomic.
template <class T, class Value>
T phalanx_emulator_update(T* address, Value change) {
  T old;
  T fresh;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do {
    fresh = change(old);
  } while (
      !__atomic_compare_exchange(address, &old, &fresh, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  return old;
}

#define PHALANX_EMULATOR_ATOMICS(T)                                                              \
  inline T atomicAdd(T* address, T value) {                                                      \
    return phalanx_emulator_update(address, [=](T old) { return static_cast<T>(old + value); }); \
  }                                                                                              \
  inline T atomicExch(T* address, T value) {                                                     \
    return phalanx_emulator_update(address, [=](T) { return value; });                           \
  }
PHALANX_EMULATOR_ATOMICS(int)
PHALANX_EMULATOR_ATOMICS(unsigned)
PHALANX_EMULATOR_ATOMICS(unsigned long long)
PHALANX_EMULATOR_ATOMICS(float)
PHALANX_EMULATOR_ATOMICS(double)
#undef PHALANX_EMULATOR_ATOMICS

#define PHALANX_EMULATOR_ATOMICS(T)                                                               \
  inline T atomicMax(T* address, T value) {                                                       \
    return phalanx_emulator_update(address, [=](T old) { return old < value ? value : old; });    \
  }                                                                                               \
  inline T atomicMin(T* address, T value) {                                                       \
    return phalanx_emulator_update(address, [=](T old) { return value < old ? value : old; });    \
  }                                                                                               \
  inline T atomicOr(T* address, T value) {                                                        \
    return phalanx_emulator_update(address, [=](T old) { return static_cast<T>(old | value); });  \
  }                                                                                               \
  inline T atomicCAS(T* address, T compare, T value) {                                            \
    return phalanx_emulator_update(address, [=](T old) { return old == compare ? value : old; }); \
  }
PHALANX_EMULATOR_ATOMICS(int)
PHALANX_EMULATOR_ATOMICS(unsigned)
PHALANX_EMULATOR_ATOMICS(unsigned long long)
PHALANX_EMULATOR_ATOMICS(long long)
#undef PHALANX_EMULATOR_ATOMICS

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline long long __double_as_longlong(double x) {
  return std::bit_cast<long long>(x);
}
inline double __longlong_as_double(long long x) {
  return std::bit_cast<double>(x);
}

inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __popcll(unsigned long long x) {
  return std::popcount(x);
}
inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}
inline int __clzll(long long x) {
  return std::countl_zero(static_cast<unsigned long long>(x));
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
  return __builtin_ffsll(x);
}
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1U) << (31 - i);
  return y;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<unsigned long long>(static_cast<Wide>(a) * b >> 64);
}

inline float rsqrtf(float x) {
  return 1.0F / sqrtf(x);
}
inline double rsqrt(double x) {
  return 1.0 / sqrt(x);
}
inline float __expf(float x) {
  return expf(x);
}
inline float __exp10f(float x) {
  return powf(10.0F, x);
}
inline float __logf(float x) {
  return logf(x);
}
inline float __log2f(float x) {
  return log2f(x);
}
inline float __fdividef(float x, float y) {
  return x / y;
}
inline float __frcp_rn(float x) {
  return 1.0F / x;
}
inline float __fsqrt_rn(float x) {
  return sqrtf(x);
}
inline float __fmaf_rn(float x, float y, float z) {
  return fmaf(x, y, z);
}
inline float __fadd_rn(float x, float y) {
  return x + y;
}
inline float __fmul_rn(float x, float y) {
  return x * y;
}
inline float __sinf(float x) {
  return sinf(x);
}
inline float __cosf(float x) {
  return cosf(x);
}

/// CUDA's global min and max: NaN loses against a number, as in fmin and fmax.
template <class A, class B>
requires std::is_arithmetic_v<A> && std::is_arithmetic_v<B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) {
    return __builtin_fmin(static_cast<T>(a), static_cast<T>(b));
  } else {
    return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
  }
}
template <class A, class B>
requires std::is_arithmetic_v<A> && std::is_arithmetic_v<B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) {
    return __builtin_fmax(static_cast<T>(a), static_cast<T>(b));
  } else {
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
  }
}
