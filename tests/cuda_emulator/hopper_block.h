// What Hopper's instructions keep for the block that a host thread runs.
#pragma once

#include <map>

#include "tests/cuda_emulator/hopper_barrier.h"
#include "tests/cuda_emulator/hopper_proxy.h"
#include "tests/cuda_emulator/hopper_registers.h"
#include "tests/cuda_emulator/hopper_wgmma.h"

namespace phalanx::emulator {

struct HopperBlock {
  AsyncProxy proxy;
  std::map<const uint64_t*, Mbarrier> barriers;
  int copies_under_way = 0;
  std::map<int, Warpgroup> warpgroups;  // by number in the block
  WarpRegisters registers;
};

/// Of the running block; made at the first use, because most kernels have none.
HopperBlock& hopper_block();
/// Forgets the last block.
void start_hopper_block();
/// Checks that a block of `threads` threads left nothing under way. Throws KernelError.
void finish_hopper_block(int threads);

}  // namespace phalanx::emulator
