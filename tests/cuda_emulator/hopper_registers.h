// setmaxnreg: the registers of a warpgroup's warps. Nothing is allocated here; the rules are
// checked.
#pragma once

#include <array>
#include <string>

#include "tests/cuda_emulator/scheduler.h"

namespace phalanx::emulator {

/// What the warps of a block have asked for.
class WarpRegisters {
 public:
  /// Warp `warp` changes to `count` registers per thread. Returns what is wrong, or "".
  std::string change(int warp, int count, bool raise);
  /// For a block of `warps` warps that ended.
  std::string error_at_end(int warps) const;

 private:
  struct Warp {
    int changes = 0;
    int count = 0;  // 0: as launched
  };
  std::array<Warp, 32> warps_{};
};

/// setmaxnreg.inc / .dec by a whole warp.
void change_registers(int count, bool raise, const Site& site);

}  // namespace phalanx::emulator
