// Operations that several threads do together: barriers, shuffles, matrix products. Each deposits
// its operand; the last to arrive does the work for all; all go on.
//
// A new collective operation is written as
//   struct Operand { float value; float result; } mine{value, 0};
//   meet_warp(kAllLanes, {"name", where}, mine, [](std::span<Operand* const> lanes) { ... });
#pragma once

#include <array>
#include <bit>
#include <span>
#include <vector>

#include "tests/cuda_emulator/scheduler.h"

namespace phalanx::emulator {

/// A rendezvous of `expected` threads. What they must agree on is their Site and a key.
class Meeting {
 public:
  struct Terms {
    Site site;
    uint64_t key = 0;  // a mask or a number of threads
    int expected = 0;
    bool same_place = true;  // false: they may come from different lines of the source
  };
  /// This thread arrives as number `slot`; true if it is the last. Ends the kernel if the others
  /// came on different terms.
  bool arrive(Scheduler& block, const Terms& terms, int slot, void* operand);
  /// Operands by slot; nullptr where nobody was expected.
  std::span<void* const> operands() const { return operands_; }
  bool is_empty() const { return arrived_ == 0; }
  /// Lets those who wait go on.
  void release(Scheduler& block);

 private:
  void compare_terms(Scheduler& block, const Terms& terms) const;
  Terms terms_;
  int arrived_ = 0;
  std::vector<Thread*> waiting_;
  std::vector<void*> operands_;
};

/// The rendezvous points of one block.
struct Meetings {
  struct Warp {
    std::array<Meeting, 32> by_lowest_lane;  // disjoint masks may meet at the same time
  };
  Meeting block;
  std::array<Meeting, 16> named;
  std::array<Warp, 32> warps;
  std::array<Meeting, 8> warpgroups;
};
/// Of the running block.
Meetings& meetings();
/// Fresh ones, after a kernel that broke.
void clear_meetings();
/// Checks after a block that nobody was counted in at a barrier in vain. Throws KernelError.
void check_meetings();

/// The common part of the functions below, for at most `most` participants.
template <size_t most, class Operand, class Work>
void meet(Meeting& meeting, const Meeting::Terms& terms, int slot, Operand& operand, Work&& work) {
  Scheduler& block = running_block(terms.site);
  if (!meeting.arrive(block, terms, slot, &operand)) {
    block.wait(terms.site);
    return;
  }
  std::array<Operand*, most> operands{};
  const auto deposited = meeting.operands();
  for (size_t i = 0; i < deposited.size(); ++i) operands[i] = static_cast<Operand*>(deposited[i]);
  work(std::span<Operand* const>(operands.data(), deposited.size()));
  meeting.release(block);
}

/// The lanes named in `mask` meet; `work` sees 32 operands (nullptr for lanes not named).
template <class Operand, class Work>
void meet_warp(unsigned mask, const Site& site, Operand& operand, Work&& work) {
  Scheduler& block = running_block(site);
  const int lane = block.self().linear % 32;
  if ((mask >> lane & 1U) == 0) block.fail(site, "the calling lane is not in its own mask");
  const Meeting::Terms terms{site, mask, std::popcount(mask)};
  Meeting& meeting = meetings()
                         .warps[static_cast<size_t>(block.self().linear / 32)]
                         .by_lowest_lane[static_cast<size_t>(std::countr_zero(mask))];
  meet<32>(meeting, terms, lane, operand, std::forward<Work>(work));
}

/// The 128 threads of a warpgroup (four warps from a multiple of four) meet.
template <class Operand, class Work>
void meet_warpgroup(const Site& site, Operand& operand, Work&& work) {
  const int linear = running_block(site).self().linear;
  meet<128>(meetings().warpgroups[static_cast<size_t>(linear / 128)], {site, 0, 128}, linear % 128,
            operand, std::forward<Work>(work));
}

/// All threads of the block, from the same line of the source.
void block_barrier(const Site& site);
/// Barrier `id` of `threads` threads (bar.sync): they may come from different lines.
void named_barrier_sync(int id, int threads, const Site& site);

}  // namespace phalanx::emulator
