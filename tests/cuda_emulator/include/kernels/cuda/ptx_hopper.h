// The emulator's twin of kernels/cuda/ptx_hopper.h: the same functions, each done by what
// tests/cuda_emulator/hopper_*.h make of the PTX ISA's documentation.
#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>

#include "kernels/cuda/hopper_operands.h"
#include "kernels/cuda/ptx.h"
#include "tests/cuda_emulator/hopper_barrier.h"
#include "tests/cuda_emulator/hopper_copy.h"
#include "tests/cuda_emulator/hopper_registers.h"
#include "tests/cuda_emulator/hopper_wgmma.h"

namespace phalanx {

inline constexpr bool kHopperCode = true;

// --- mbarrier ---

inline void barrier_init(uint64_t* barrier, uint32_t arrivals, PHALANX_EMULATOR_WHERE) {
  emulator::init_barrier(barrier, arrivals, {"barrier_init", where});
}
inline void barrier_init_fence(PHALANX_EMULATOR_WHERE) {
  emulator::fence_barrier_init({"barrier_init_fence", where});
}
inline void barrier_arrive(uint64_t* barrier, PHALANX_EMULATOR_WHERE) {
  emulator::arrive_at_barrier(barrier, 0, {"barrier_arrive", where});
}
inline void barrier_arrive_expecting(uint64_t* barrier, uint32_t bytes, PHALANX_EMULATOR_WHERE) {
  emulator::arrive_at_barrier(barrier, bytes, {"barrier_arrive_expecting", where});
}
inline void barrier_expect(uint64_t* barrier, uint32_t bytes, PHALANX_EMULATOR_WHERE) {
  emulator::expect_at_barrier(barrier, bytes, {"barrier_expect", where});
}
inline void barrier_wait(uint64_t* barrier, uint32_t parity, PHALANX_EMULATOR_WHERE) {
  emulator::wait_for_barrier(barrier, parity, {"barrier_wait", where});
}
inline void async_proxy_fence(PHALANX_EMULATOR_WHERE) {
  emulator::fence_async_proxy({"async_proxy_fence", where});
}

// --- TMA ---

inline void tensor_load(void* shared, const TensorMap& map, int32_t column, int32_t row,
                        int32_t plane, uint64_t* barrier, PHALANX_EMULATOR_WHERE) {
  emulator::start_tensor_load(shared, map.map, std::array{column, row, plane}, barrier,
                              {"tensor_load", where});
}

// --- registers ---

template <int count>
void lower_registers(PHALANX_EMULATOR_WHERE) {
  emulator::change_registers(count, false, {"lower_registers", where});
}
template <int count>
void raise_registers(PHALANX_EMULATOR_WHERE) {
  emulator::change_registers(count, true, {"raise_registers", where});
}

// --- wgmma ---

inline void wgmma_fence(PHALANX_EMULATOR_WHERE) {
  emulator::fence_products({"wgmma_fence", where});
}
inline void wgmma_commit(PHALANX_EMULATOR_WHERE) {
  emulator::commit_products({"wgmma_commit", where});
}
template <int pending>
void wgmma_wait(PHALANX_EMULATOR_WHERE) {
  emulator::wait_for_products(pending, {"wgmma_wait", where});
}
template <int count>
void keep_registers(float (&)[count]) {}

template <Major major_a, Major major_b, int count>
void wgmma(float (&d)[count], uint64_t a, uint64_t b, bool accumulate, PHALANX_EMULATOR_WHERE) {
  static_assert(count == 32 || count == 64, "N is 64 or 128");
  emulator::issue_product({.terms = {.columns = 2 * count,
                                     .mn_major_a = major_a == Major::mn,
                                     .mn_major_b = major_b == Major::mn,
                                     .a = a,
                                     .b = b,
                                     .accumulate = accumulate},
                           .d = d},
                          {"wgmma", where});
}
template <Major major_b, int count>
void wgmma(float (&d)[count], const uint32_t (&a)[4], uint64_t b, bool accumulate,
           PHALANX_EMULATOR_WHERE) {
  static_assert(count == 32 || count == 64, "N is 64 or 128");
  emulator::issue_product({.terms = {.columns = 2 * count,
                                     .a_in_registers = true,
                                     .mn_major_b = major_b == Major::mn,
                                     .b = b,
                                     .accumulate = accumulate},
                           .a = a,
                           .d = d},
                          {"wgmma", where});
}

}  // namespace phalanx
