// Packs: 16 bytes of consecutive elements, moved in one access where alignment and width allow, or
// one element where they do not. Kernels are templates over `n`, the elements of a pack: kPack<T>
// or 1.
#pragma once

#include <initializer_list>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

namespace phalanx {

/// Elements in 16 bytes.
template <class T>
inline constexpr int kPack = static_cast<int>(16 / sizeof(T));

/// What a pack lies in: registers of one access.
template <class T, int n>
struct PackWords {
  using type = T;
};
template <>
struct PackWords<double, 2> {
  using type = double2;
};
template <>
struct PackWords<float, 4> {
  using type = float4;
};
template <>
struct PackWords<BFloat16, 8> {
  using type = uint4;
};

/// n elements of T as they lie in memory.
template <class T, int n>
struct Pack {
  typename PackWords<T, n>::type words;
};

template <int n, class T>
__device__ Pack<T, n> load_pack(const T* source) {
  return {*reinterpret_cast<const typename PackWords<T, n>::type*>(source)};
}
/// The same of memory that the kernel does not write: such loads need not wait for its stores.
template <int n, class T>
__device__ Pack<T, n> load_constant_pack(const T* source) {
  if constexpr (n == 1)
    return {*source};
  else
    return {__ldg(reinterpret_cast<const typename PackWords<T, n>::type*>(source))};
}
template <class T, int n>
__device__ void store_pack(T* target, const Pack<T, n>& pack) {
  *reinterpret_cast<typename PackWords<T, n>::type*>(target) = pack.words;
}

/// The elements of a pack, in the type that sums are kept in.
template <class T, int n>
__device__ void unpack(Accumulator<T> (&values)[n], const Pack<T, n>& pack) {
  const auto& words = pack.words;
  if constexpr (n == 1) {
    values[0] = static_cast<Accumulator<T>>(words);
  } else if constexpr (n == 2) {
    values[0] = words.x;
    values[1] = words.y;
  } else if constexpr (n == 4) {
    values[0] = words.x;
    values[1] = words.y;
    values[2] = words.z;
    values[3] = words.w;
  } else {
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack_bf16(pairs[i]);
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
}

/// `values` rounded to T.
template <class T, int n>
__device__ Pack<T, n> pack_values(const Accumulator<T> (&values)[n]) {
  if constexpr (n == 1)
    return {round_to<T>(values[0])};
  else if constexpr (n == 2)
    return {{values[0], values[1]}};
  else if constexpr (n == 4)
    return {{values[0], values[1], values[2], values[3]}};
  else
    return {{pack_bf16(values[0], values[1]), pack_bf16(values[2], values[3]),
             pack_bf16(values[4], values[5]), pack_bf16(values[6], values[7])}};
}

/// values[0 .. n) = source[0 .. n), for n = 1 or any multiple of a pack.
template <int n, class T>
__device__ void load(Accumulator<T> (&values)[n], const T* source) {
  if constexpr (n == 1 || n == kPack<T>) {
    unpack(values, load_pack<n>(source));
  } else {
    constexpr int size = kPack<T>;
    static_assert(n % size == 0);
    Pack<T, size> packs[n / size];
#pragma unroll
    for (int part = 0; part < n / size; ++part) packs[part] = load_pack<size>(source + part * size);
#pragma unroll
    for (int part = 0; part < n / size; ++part) {
      Accumulator<T> some[size];
      unpack(some, packs[part]);
#pragma unroll
      for (int i = 0; i < size; ++i) values[part * size + i] = some[i];
    }
  }
}

/// target[0 .. n) = values[0 .. n), rounded to T.
template <int n, class T>
__device__ void store(T* target, const Accumulator<T> (&values)[n]) {
  constexpr int size = n == 1 ? 1 : kPack<T>;
  static_assert(n % size == 0);
#pragma unroll
  for (int part = 0; part < n / size; ++part) {
    Accumulator<T> some[size];
#pragma unroll
    for (int i = 0; i < size; ++i) some[i] = values[part * size + i];
    store_pack(target + part * size, pack_values<T, size>(some));
  }
}

/// The value as T holds it.
template <class T>
__device__ Accumulator<T> rounded(Accumulator<T> value) {
  return static_cast<Accumulator<T>>(round_to<T>(value));
}

/// Whether all of these (or null) start at a multiple of 16 bytes.
inline bool starts_packs(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers)
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
  return true;
}

/// Calls body.operator()<n>() with n = kPack<T> if `in_packs`, else with 1.
template <class T, class Body>
void dispatch_packs(bool in_packs, const Body& body) {
  if (in_packs)
    body.template operator()<kPack<T>>();
  else
    body.template operator()<1>();
}

/// Calls op.run<n>(i) with i = 0, n, 2 n .., one pack per thread, and op.run<1>(i) for the elements
/// that no longer fill a pack.
template <int n, class Op>
__global__ void for_each_pack(Op op, int64_t count) {
  int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * n;
  if (i + n <= count)
    op.template run<n>(i);
  else
    for (; i < count; ++i) op.template run<1>(i);
}

/// Runs `op` over `count` elements of T, see for_each_pack.
template <class T, class Op>
void launch_packs(const Op& op, int64_t count, bool in_packs, cudaStream_t stream) {
  dispatch_packs<T>(in_packs, [&]<int n>() {
    launch(for_each_pack<n, Op>, one_thread_each((count + n - 1) / n), stream, op, count);
  });
}

}  // namespace phalanx
