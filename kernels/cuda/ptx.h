// What CUDA's machine gives a thread beyond C++: inline PTX and its shared memory, one function per
// instruction, named after what it does. Kernels use nothing machine-specific but this file and
// ptx_hopper.h, so that the CUDA emulator of tests/ can stand in for the machine with a twin of
// these two headers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/base/dtype.h"

namespace phalanx {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffU;

/// The block's dynamic shared memory, aligned to 1,024 bytes (what swizzled TMA tiles need).
template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char phalanx_dynamic_shared[];
  return reinterpret_cast<T*>(phalanx_dynamic_shared);
}

/// Address in the shared window, for instructions that take one.
__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- bfloat16 ---

/// Two floats rounded to nearest even; `low` in the lower half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ inline float2 unpack_bf16(uint32_t packed) {
  return {__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000U)};
}

/// `value` as T, rounded to nearest even.
template <class T, class Value>
__device__ T round_to(Value value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    BFloat16 rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(static_cast<float>(value)));
    return rounded;
  } else {
    return static_cast<T>(value);
  }
}

// --- matrix products of a warp (mma.sync, PTX ISA "Matrix Fragments for mma.m16n8k16") ---

/// D[16, 8] += A[16, 16] B[16, 8], A and B bf16. Lane = 4 g + t holds
/// a: rows g (a0, a2) and g + 8 (a1, a3), columns 2 t, 2 t + 1 (a0, a1) and those + 8 (a2, a3);
/// b: column g, rows 2 t, 2 t + 1 (b0) and those + 8 (b1);
/// d: row g (d0, d1) and g + 8 (d2, d3), columns 2 t and 2 t + 1.
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Four 8 x 8 matrices of 16-bit elements out of shared memory: lane l gives the address of row
/// l % 8 of matrix l / 8, 16 bytes aligned to 16. Lane 4 g + t receives, of each matrix, row g,
/// columns 2 t and 2 t + 1.
__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/// The same of the transposed matrices: rows 2 t and 2 t + 1, column g.
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// --- copies that run beside the computation ---

/// 16 bytes from global to shared memory, or 16 bytes of zero unless `valid`. Both aligned to 16.
__device__ inline void copy_async_16(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
/// Closes a group of this thread's copies.
__device__ inline void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits until at most `pending` of this thread's latest groups are under way; other threads' data
/// need a barrier after it.
template <int pending>
__device__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// --- the rest ---

/// 2^x by the special function unit: relative error about 2^-22; 2^-infinity = 0.
__device__ inline float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Barrier `id` (1 to 15; 0 is __syncthreads) of `threads` threads of the block, a multiple of 32.
__device__ inline void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace phalanx
