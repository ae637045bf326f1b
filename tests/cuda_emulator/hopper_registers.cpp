// setmaxnreg, from the PTX ISA, "Miscellaneous Instructions: setmaxnreg".
#include "tests/cuda_emulator/hopper_registers.h"

#include <fmt/format.h>

#include "tests/cuda_emulator/collective.h"
#include "tests/cuda_emulator/hopper_block.h"

namespace phalanx::emulator {

std::string WarpRegisters::change(int warp, int count, bool raise) {
  if (count < 24 || count > 256 || count % 8 != 0)
    return fmt::format("{} registers, not a multiple of 8 from 24 to 256", count);
  Warp& mine = warps_[static_cast<size_t>(warp)];
  if (mine.count != 0 && (raise ? count < mine.count : count > mine.count))
    return fmt::format("{} from {} to {} registers", raise ? "raises" : "lowers", mine.count,
                       count);
  ++mine.changes;
  mine.count = count;
  return "";
}

std::string WarpRegisters::error_at_end(int warps) const {
  constexpr int kRegistersOfBlock = 64 << 10;
  int total = 0;
  bool all_known = true;
  for (int i = 0; i < warps; ++i) {
    const Warp& mine = warps_[static_cast<size_t>(i)];
    const Warp& first = warps_[static_cast<size_t>(i / 4 * 4)];
    if (mine.changes != first.changes || mine.count != first.count)
      return fmt::format("setmaxnreg was not executed alike by the four warps of warpgroup {}",
                         i / 4);
    all_known = all_known && mine.count != 0;
    total += 32 * mine.count;
  }
  if (!all_known || total <= kRegistersOfBlock) return "";
  return fmt::format("setmaxnreg shares out {} registers, there are {}: a warp would wait for ever",
                     total, kRegistersOfBlock);
}

void change_registers(int count, bool raise, const Site& site) {
  struct Nothing {
  } mine;
  meet_warp(0xffffffffU, site, mine, [](auto) {});
  Scheduler& block = running_block(site);
  if (block.self().linear % 32 != 0) return;
  const auto error = hopper_block().registers.change(block.self().linear / 32, count, raise);
  if (!error.empty()) block.fail(site, error);
}

}  // namespace phalanx::emulator
