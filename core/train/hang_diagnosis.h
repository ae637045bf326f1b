// Which ranks hold up a run in which nothing goes on, and what to say of them. Pure: records in,
// sentences out.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/train/hang_waits.h"

namespace phalanx {

struct Diagnosis {
  /// "rank 5 on node3 has not entered reduce_scatter #412 of dp_cp (ranks 1, 5), in which rank 1
  /// waits for 31 s; it is in `reading /runs/a/shard_00004.h5` for 31 s". Ranks of one node of
  /// which the same is to be said share one.
  std::vector<std::string> sentences;
  std::vector<int64_t> suspects;   // ascending
  std::vector<std::string> nodes;  // of the suspects, each once
};

/// "0-3, 7"
std::string ranks_text(std::span<const int64_t> ranks);

/// `ranks` by number, one for every rank of `mesh`.
///
/// Suspect is who is waited for and does not wait itself, and who does not answer. If everybody
/// waits: those who call their collectives in different orders, or wait in a circle. If nobody
/// does: who is behind in a group's collectives, and else every rank, the rarest occupation first.
Diagnosis diagnose(std::span<const RankState> ranks, const DeviceMesh& mesh);

}  // namespace phalanx
