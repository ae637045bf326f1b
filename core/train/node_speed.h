// Which node holds the others up, from the times of all ranks over some steps.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/train/rank_places.h"
#include "core/train/step_times.h"

namespace phalanx {

/// A node that costs the run time: its ranks compute longer than those of other nodes.
struct SlowNode {
  int node = 0;
  double excess = 0;   // seconds a step, beyond the median node of the same pipeline stage
  double percent = 0;  // of the step
};

/// The slowest node of an interval: for each pipeline stage (stages differ by their layers) the
/// nodes' mean compute times are compared with their median; of an even number of nodes with the
/// lower of the two in the middle, so that of two nodes one can be the slower. Nothing where no
/// stage is on two nodes. `times` are sums over `steps` steps, of every rank.
std::optional<SlowNode> slowest_node(const std::vector<StepTimes>& times, int64_t steps,
                                     const RankPlaces& places);

/// Decides what is worth saying: a node that costs more than 5 % of the step in two intervals in a
/// row, at most every ten minutes per node. One thread.
class SlowNodeWatch {
 public:
  /// After every interval; `now` in seconds.
  std::optional<SlowNode> look(const std::optional<SlowNode>& slowest, double now);

 private:
  int suspect_ = -1;             // over the limit in the interval before
  std::vector<double> told_at_;  // per node; grows as nodes are told of
};

/// "node3 is slow: its ranks compute 41 ms a step more than the median node's (12 % of the step)".
std::string slow_node_text(const SlowNode& slow, const RankPlaces& places);

}  // namespace phalanx
