// What device code finds in the global namespace: qualifiers, built-in variables, intrinsics.
// Collective intrinsics take their source location as a hidden last argument, for the errors.
#pragma once

#include <math.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <source_location>
#include <type_traits>

#include "tests/cuda_emulator/collective.h"
#include "tests/cuda_emulator/device_variables.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// One copy per host thread: a host thread runs one block at a time. The tag in the symbol's name
// is how shared_memory.cpp finds these variables, to poison them before each block.
#define __shared__ static thread_local __attribute__((abi_tag("cuda_shared")))

#define PHALANX_EMULATOR_WHERE std::source_location where = std::source_location::current()

inline void __syncthreads(PHALANX_EMULATOR_WHERE) {
  phalanx::emulator::block_barrier({"__syncthreads", where});
}

inline void __syncwarp(unsigned mask = 0xffffffffU, PHALANX_EMULATOR_WHERE) {
  struct Nothing {
  } mine;
  phalanx::emulator::meet_warp(mask, {"__syncwarp", where}, mine, [](auto) {});
}

namespace phalanx::emulator {

/// Lane i receives the value of lane source(i) of its segment, or keeps its own.
template <class T>
T shuffle(unsigned mask, T value, int source, const Site& site) {
  static_assert(std::is_arithmetic_v<T>, "shuffles move numbers of 4 or 8 bytes");
  static_assert(sizeof(T) >= 4, "shuffles move numbers of 4 or 8 bytes");
  struct Operand {
    T value, result;
    int source;
    bool misses;
  } mine{value, value, source, false};
  meet_warp(mask, site, mine, [](std::span<Operand* const> lanes) {
    for (Operand* lane : lanes) {
      if (lane == nullptr) continue;
      const Operand* from = lanes[static_cast<size_t>(lane->source)];
      lane->misses = from == nullptr;
      if (from != nullptr) lane->result = from->value;
    }
  });
  if (mine.misses) this_block->fail(site, "reads a lane that the mask does not name");
  return mine.result;
}

inline int lane_in_block(const Site& site) {
  return running_block(site).self().linear % 32;
}

}  // namespace phalanx::emulator

// The lane arithmetic of the CUDA programming guide, "Warp Shuffle Functions".
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, PHALANX_EMULATOR_WHERE) {
  const phalanx::emulator::Site site{"__shfl_sync", where};
  const int lane = phalanx::emulator::lane_in_block(site);
  const int segment = lane & ~(width - 1);
  return phalanx::emulator::shuffle(mask, value, segment + (source & (width - 1)), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, PHALANX_EMULATOR_WHERE) {
  const phalanx::emulator::Site site{"__shfl_xor_sync", where};
  const int lane = phalanx::emulator::lane_in_block(site);
  const int source = lane ^ lane_mask;
  const bool beyond = source >= (lane & ~(width - 1)) + width || source > 31;
  return phalanx::emulator::shuffle(mask, value, beyond ? lane : source, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, PHALANX_EMULATOR_WHERE) {
  const phalanx::emulator::Site site{"__shfl_down_sync", where};
  const int lane = phalanx::emulator::lane_in_block(site);
  const bool stays = (lane & (width - 1)) + static_cast<int>(delta) >= width;
  return phalanx::emulator::shuffle(mask, value, stays ? lane : lane + static_cast<int>(delta),
                                    site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, PHALANX_EMULATOR_WHERE) {
  const phalanx::emulator::Site site{"__shfl_up_sync", where};
  const int lane = phalanx::emulator::lane_in_block(site);
  const bool stays = (lane & (width - 1)) < static_cast<int>(delta);
  return phalanx::emulator::shuffle(mask, value, stays ? lane : lane - static_cast<int>(delta),
                                    site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, PHALANX_EMULATOR_WHERE) {
  struct Operand {
    bool predicate;
    unsigned result;
  } mine{predicate != 0, 0};
  phalanx::emulator::meet_warp(mask, {"__ballot_sync", where}, mine,
                               [](std::span<Operand* const> lanes) {
                                 unsigned ballot = 0;
                                 for (size_t i = 0; i < lanes.size(); ++i)
                                   if (lanes[i] != nullptr && lanes[i]->predicate)
                                     ballot |= 1U << i;
                                 for (Operand* lane : lanes)
                                   if (lane != nullptr) lane->result = ballot;
                               });
  return mine.result;
}
inline int __any_sync(unsigned mask, int predicate, PHALANX_EMULATOR_WHERE) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, PHALANX_EMULATOR_WHERE) {
  return __ballot_sync(mask, predicate, where) == mask;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

#include "tests/cuda_emulator/device_math.h"
