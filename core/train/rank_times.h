// RankTimes: the times of all ranks' steps, gathered now and then, for the log to name the slow.
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/train/node_speed.h"

namespace phalanx {

/// Of every rank over the same steps.
struct RankTimesReport {
  std::vector<StepTimes> times;  // sums, by rank
  int64_t steps = 0;
};

/// Sums up the steps of one rank. Gathering costs one collective of a few numbers per rank, first
/// after 2 seconds, then after twice as long each time until it is every 10 seconds. One thread.
class RankTimes {
 public:
  explicit RankTimes(ProcessGroup& world) : world_(world) {}

  /// A step has ended. The first one is left out: it builds what later ones find.
  void add(const StepTimes& times);
  /// Whether it is time to gather, by this rank's clock. All ranks must act on one rank's answer.
  bool is_due() const;
  /// Collective. Begins anew.
  RankTimesReport gather();

 private:
  using Clock = std::chrono::steady_clock;

  ProcessGroup& world_;
  bool first_ = true;
  int64_t steps_ = 0;
  StepTimes sum_;
  std::chrono::duration<double> pause_{2};
  Clock::time_point since_ = Clock::now();
};

/// {"step", "steps", "compute": {"min", "median", "max", "slowest_rank", "slowest_node"}, "wait":
/// ..., "data": ..., "save": ...}: means of a step in seconds, over the ranks. `step` is the last.
nlohmann::ordered_json rank_times_json(const RankTimesReport& report, int64_t step,
                                       const RankPlaces& places);

}  // namespace phalanx
