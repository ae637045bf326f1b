// Hopper's state of a block, from its start to its end.
#include "tests/cuda_emulator/hopper_block.h"

#include <fmt/format.h>

#include <optional>

namespace phalanx::emulator {

namespace {
thread_local std::optional<HopperBlock> the_block;
}  // namespace

HopperBlock& hopper_block() {
  if (!the_block) the_block.emplace();
  return *the_block;
}

void start_hopper_block() {
  the_block.reset();
}

void finish_hopper_block(int threads) {
  if (!the_block) return;
  if (the_block->copies_under_way > 0)
    throw KernelError(
        fmt::format("a block ended while {} copies by TMA into its shared memory were "
                    "under way",
                    the_block->copies_under_way));
  for (const auto& [number, warpgroup] : the_block->warpgroups)
    if (warpgroup.has_products_under_way())
      throw KernelError(fmt::format(
          "a block ended while products of warpgroup {} were under way: wgmma_wait is missing",
          number));
  const std::string error = the_block->registers.error_at_end((threads + 31) / 32);
  if (!error.empty()) throw KernelError(error);
}

}  // namespace phalanx::emulator
