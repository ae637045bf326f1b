// What each group of ranks has sent and waited for since the last look: for metrics.jsonl.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "parallel/process_groups.h"

namespace phalanx {

/// Of one group and this rank. Bytes as `Traffic` counts them: what the rank handed in.
struct GroupTraffic {
  std::string name;                                // "dp_cp"
  std::array<Traffic, kNumCollectives> traffic{};  // per operation
  double wait_seconds = 0;                         // exposed: not hidden behind computing
};

/// Borrows the groups. One thread, the one that calls their collectives.
class CommunicationLog {
 public:
  /// Counts from now on, for the groups of more than one rank.
  explicit CommunicationLog(const ProcessGroups& groups);

  /// Since the call before; groups in the order tp, cp, dp, dp_cp, pp, ep, expert_tp, expert_dp,
  /// world. The reference holds until the next call.
  const std::vector<GroupTraffic>& take();

 private:
  std::vector<const ProcessGroup*> groups_;
  std::vector<GroupTraffic> before_;  // totals at the last call
  std::vector<GroupTraffic> taken_;
};

/// {"dp_cp": {"all_gather": {"calls": 2, "bytes": 64}, "wait_seconds": 0.001}, ...}, without
/// operations that were not called.
std::string communication_json(const std::vector<GroupTraffic>& groups);

}  // namespace phalanx
