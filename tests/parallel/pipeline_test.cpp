// Schedules as data: every dependency is met, nothing runs twice, and few micro-batches stay alive.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "parallel/pipeline_executor.h"
#include "parallel/process_groups.h"

namespace phalanx {
namespace {

/// Runs all stages side by side, each action as soon as what it needs is there. True if all ran.
bool runs_to_the_end(const std::vector<std::vector<PipelineAction>>& stages) {
  const auto key = [](size_t stage, const PipelineAction& action) {
    return std::tuple(stage, action.kind, action.micro_batch);
  };
  std::set<std::tuple<size_t, PipelineActionKind, int64_t>> done;
  std::vector<size_t> next(stages.size(), 0);
  for (bool progress = true; progress;) {
    progress = false;
    for (size_t s = 0; s < stages.size(); ++s) {
      if (next[s] == stages[s].size()) continue;
      const PipelineAction& action = stages[s][next[s]];
      PipelineAction forward = action;
      forward.kind = PipelineActionKind::forward;
      const bool is_forward = action.kind == PipelineActionKind::forward;
      const bool ready = is_forward
                             ? s == 0 || done.contains(key(s - 1, action))
                             : done.contains(key(s, forward)) &&
                                   (s + 1 == stages.size() || done.contains(key(s + 1, action)));
      if (!ready) continue;
      if (!done.insert(key(s, action)).second) return false;
      ++next[s];
      progress = true;
    }
  }
  return std::equal(next.begin(), next.end(), stages.begin(),
                    [](size_t n, const auto& actions) { return n == actions.size(); });
}

TEST(PipelineSchedule, DependenciesAreMetForManySizes) {
  for (int64_t num_stages = 1; num_stages <= 7; ++num_stages) {
    for (int64_t num_micro_batches = 1; num_micro_batches <= 12; ++num_micro_batches) {
      std::vector<std::vector<PipelineAction>> gpipe;
      std::vector<std::vector<PipelineAction>> one_one;
      for (int64_t stage = 0; stage < num_stages; ++stage) {
        gpipe.push_back(gpipe_schedule(num_micro_batches));
        one_one.push_back(one_forward_one_backward_schedule(stage, num_stages, num_micro_batches));
        EXPECT_EQ(static_cast<int64_t>(one_one.back().size()), 2 * num_micro_batches);
        EXPECT_EQ(max_in_flight(gpipe.back()), num_micro_batches);
        EXPECT_EQ(max_in_flight(one_one.back()), std::min(num_stages - stage, num_micro_batches));
      }
      EXPECT_TRUE(runs_to_the_end(gpipe)) << num_stages << " " << num_micro_batches;
      EXPECT_TRUE(runs_to_the_end(one_one)) << num_stages << " " << num_micro_batches;
    }
  }
}

TEST(PipelineSchedule, RefusesImpossibleSizes) {
  EXPECT_THROW(gpipe_schedule(0), Error);
  EXPECT_THROW(one_forward_one_backward_schedule(2, 2, 1), Error);
  EXPECT_EQ(max_in_flight({}), 0);
}

class RecordingStage final : public PipelineStage {
 public:
  void forward(const PipelineAction& action, const Tensor&, const Tensor&) override {
    ran.push_back(action);
  }
  void backward(const PipelineAction& action, const Tensor&, const Tensor&, bool last) override {
    ran.push_back(action);
    last_flags.push_back(last);
  }
  std::vector<PipelineAction> ran;
  std::vector<bool> last_flags;
};

TEST(PipelineExecutor, RunsAllActionsAndTellsTheLastBackward) {
  const ProcessGroups groups = make_single_process_groups();
  for (const auto& actions : {gpipe_schedule(3), one_forward_one_backward_schedule(0, 1, 3)}) {
    RecordingStage stage;
    run_pipeline(actions, stage, *groups.pp);
    EXPECT_EQ(stage.ran, actions);
    EXPECT_EQ(stage.last_flags, (std::vector<bool>{false, false, true}));
  }
}

TEST(PipelineExecutor, MoreThanOneStageIsRefusedByName) {
  const DeviceMesh mesh({.pipeline_model_parallel_size = 2}, 2);
  const ProcessGroups groups = make_measuring_process_groups(mesh, 0);
  RecordingStage stage;
  EXPECT_THROW(run_pipeline(gpipe_schedule(1), stage, *groups.pp), UsageError);
}

}  // namespace
}  // namespace phalanx
