// The emulator's twin of kernels/cuda/ptx.h: the same functions, done by meetings of fibers.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <type_traits>

#include "kernels/base/dtype.h"
#include "tests/cuda_emulator/async_copies.h"
#include "tests/cuda_emulator/fragments.h"
#include "tests/cuda_emulator/shared_memory.h"

namespace phalanx {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffU;

template <class T>
T* dynamic_shared(PHALANX_EMULATOR_WHERE) {
  return static_cast<T*>(emulator::dynamic_shared_base({"dynamic_shared", where}));
}

inline uint32_t shared_address(const void* pointer, PHALANX_EMULATOR_WHERE) {
  return emulator::shared_window_address(pointer, {"shared_address", where});
}

// --- bfloat16 ---

inline uint32_t pack_bf16(float low, float high) {
  return uint32_t{BFloat16(low).bits} | uint32_t{BFloat16(high).bits} << 16;
}

inline float2 unpack_bf16(uint32_t packed) {
  return {__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000U)};
}

template <class T, class Value>
T round_to(Value value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return BFloat16(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

// --- matrix products of a warp ---

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         PHALANX_EMULATOR_WHERE) {
  emulator::MmaOperand mine{d, a, b};
  emulator::meet_warp(kAllLanes, {"mma_m16n8k16", where}, mine, emulator::multiply_fragments);
}

inline void load_matrices(uint32_t (&r)[4], const void* row, PHALANX_EMULATOR_WHERE) {
  emulator::load_matrices(r, row, false, {"load_matrices", where});
}

inline void load_matrices_transposed(uint32_t (&r)[4], const void* row, PHALANX_EMULATOR_WHERE) {
  emulator::load_matrices(r, row, true, {"load_matrices_transposed", where});
}

// --- copies that run beside the computation ---

inline void copy_async_16(void* shared, const void* global, bool valid = true,
                          PHALANX_EMULATOR_WHERE) {
  emulator::async_copies().start(shared, global, valid, {"copy_async_16", where});
}
inline void copy_async_commit() {
  emulator::async_copies().commit();
}
template <int pending>
void copy_async_wait() {
  emulator::async_copies().wait(pending);
}

// --- the rest ---

inline float exp2_approximate(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126F ? 0.0F : y;  // flushes denormal results to zero
}

inline void named_barrier(int id, int threads, PHALANX_EMULATOR_WHERE) {
  emulator::named_barrier_sync(id, threads, {"named_barrier", where});
}

}  // namespace phalanx
