// How long a pipeline's schedule takes and how much of that its ranks idle, predicted from the
// action lists.
#pragma once

#include <vector>

#include "parallel/pipeline_schedule.h"

namespace phalanx {

/// Time of each action of one virtual stage, in any unit. `backward` takes both halves' time.
struct PipelineCosts {
  double forward = 1;
  double backward_input = 1;
  double backward_weight = 1;
};

struct PipelineTiming {
  double makespan = 0;       // from the first action's start to the last one's end
  std::vector<double> busy;  // per rank: time in actions
  /// Part of the makespan that the rank idles.
  double bubble_fraction(int64_t stage) const;
  /// The same over all ranks.
  double bubble_fraction() const;
};

/// Runs the ranks' lists side by side, each action as soon as its rank is free and what it needs is
/// there; messages take no time. `costs` has one entry per virtual stage (chunk * ranks + rank).
/// Throws if an action can never run, naming it.
PipelineTiming simulate_pipeline(const std::vector<std::vector<PipelineAction>>& stages,
                                 const std::vector<PipelineCosts>& costs);

/// The lists of all ranks; `shape.stage` is not read.
std::vector<std::vector<PipelineAction>> make_all_schedules(PipelineScheduleKind kind,
                                                            PipelineShape shape);

}  // namespace phalanx
