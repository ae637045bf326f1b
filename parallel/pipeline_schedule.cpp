// The schedules, and how many micro-batches they keep alive.
#include "parallel/pipeline_schedule.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace phalanx {

// Backwards run last in, first out (Huang et al. 2019, figure 2): the newest activations go first.
std::vector<PipelineAction> gpipe_schedule(int64_t num_micro_batches) {
  check(num_micro_batches >= 1, "a schedule needs a micro-batch, got ", num_micro_batches);
  std::vector<PipelineAction> actions;
  for (int64_t i = 0; i < num_micro_batches; ++i)
    actions.push_back({PipelineActionKind::forward, i, 0});
  for (int64_t i = num_micro_batches - 1; i >= 0; --i)
    actions.push_back({PipelineActionKind::backward, i, 0});
  return actions;
}

// A stage runs ahead by the number of stages behind it: that long the first backward takes to come
// back.
std::vector<PipelineAction> one_forward_one_backward_schedule(int64_t stage, int64_t num_stages,
                                                              int64_t num_micro_batches) {
  check(0 <= stage && stage < num_stages, "pipeline stage ", stage, " is not one of ", num_stages);
  check(num_micro_batches >= 1, "a schedule needs a micro-batch, got ", num_micro_batches);
  const int64_t warm_up = std::min(num_stages - stage - 1, num_micro_batches);
  std::vector<PipelineAction> actions;
  for (int64_t i = 0; i < num_micro_batches + warm_up; ++i) {
    if (i < num_micro_batches) actions.push_back({PipelineActionKind::forward, i, 0});
    if (i >= warm_up) actions.push_back({PipelineActionKind::backward, i - warm_up, 0});
  }
  return actions;
}

int64_t max_in_flight(const std::vector<PipelineAction>& actions) {
  int64_t in_flight = 0;
  int64_t most = 0;
  for (const PipelineAction& action : actions) {
    in_flight += action.kind == PipelineActionKind::forward ? 1 : -1;
    most = std::max(most, in_flight);
  }
  return most;
}

}  // namespace phalanx
