// An event-by-event run of a pipeline whose actions only take time.
#include "parallel/pipeline_timing.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

using enum PipelineActionKind;

class Simulation {
 public:
  Simulation(const std::vector<std::vector<PipelineAction>>& stages,
             const std::vector<PipelineCosts>& costs)
      : stages_(stages), costs_(costs), next_(stages.size()), clock_(stages.size()) {
    check(!stages.empty() && !costs.empty() && costs.size() % stages.size() == 0, "costs of ",
          costs.size(), " virtual stages for ", stages.size(), " pipeline ranks");
    for (const auto& actions : stages)
      for (const PipelineAction& action : actions)
        num_micro_batches_ = std::max(num_micro_batches_, action.micro_batch + 1);
    const auto cells = costs.size() * static_cast<size_t>(num_micro_batches_);
    forward_end_.resize(cells);
    backward_end_.resize(cells);
  }

  PipelineTiming run() {
    PipelineTiming timing{.busy = std::vector<double>(stages_.size())};
    for (bool progress = true; progress;) {
      progress = false;
      for (size_t stage = 0; stage < stages_.size(); ++stage)
        while (const auto cost = run_next(stage)) {
          timing.busy[stage] += *cost;
          progress = true;
        }
    }
    for (size_t stage = 0; stage < stages_.size(); ++stage) check_finished(stage);
    timing.makespan = *std::max_element(clock_.begin(), clock_.end());
    return timing;
  }

 private:
  using Time = std::optional<double>;

  /// Runs the next action of `stage` if it can; its cost.
  Time run_next(size_t stage) {
    if (next_[stage] == stages_[stage].size()) return {};
    const PipelineAction& action = stages_[stage][next_[stage]];
    const size_t virtual_stage = static_cast<size_t>(action.chunk) * stages_.size() + stage;
    check(virtual_stage < costs_.size(), "no costs for chunk ", action.chunk, " of rank ", stage);
    const Time ready = ready_time(virtual_stage, action);
    if (!ready) return {};
    const double cost = cost_of(costs_[virtual_stage], action.kind);
    const double end = std::max(clock_[stage], *ready) + cost;
    clock_[stage] = end;
    ++next_[stage];
    if (action.kind == forward) forward_end_[cell(virtual_stage, action)] = end;
    if (action.kind == backward || action.kind == backward_input)
      backward_end_[cell(virtual_stage, action)] = end;
    return cost;
  }

  /// When all that the action needs is there; none if it is not yet known.
  Time ready_time(size_t virtual_stage, const PipelineAction& action) const {
    if (action.kind == forward)
      return virtual_stage == 0 ? Time(0) : forward_end_[cell(virtual_stage - 1, action)];
    if (action.kind == backward_weight) return backward_end_[cell(virtual_stage, action)];
    const Time own = forward_end_[cell(virtual_stage, action)];
    if (!own || virtual_stage + 1 == costs_.size()) return own;
    const Time next = backward_end_[cell(virtual_stage + 1, action)];
    return next ? Time(std::max(*own, *next)) : next;
  }

  static double cost_of(const PipelineCosts& costs, PipelineActionKind kind) {
    if (kind == forward) return costs.forward;
    return (kind == backward_weight ? 0 : costs.backward_input) +
           (kind == backward_input ? 0 : costs.backward_weight);
  }

  size_t cell(size_t virtual_stage, const PipelineAction& action) const {
    return virtual_stage * static_cast<size_t>(num_micro_batches_) +
           static_cast<size_t>(action.micro_batch);
  }

  void check_finished(size_t stage) const {
    if (next_[stage] == stages_[stage].size()) return;
    const PipelineAction& action = stages_[stage][next_[stage]];
    fail("this pipeline schedule deadlocks: ", action_name(action.kind), " of micro-batch ",
         action.micro_batch, " in chunk ", action.chunk, " on rank ", stage,
         " waits for what never comes");
  }

  const std::vector<std::vector<PipelineAction>>& stages_;
  const std::vector<PipelineCosts>& costs_;
  std::vector<size_t> next_;   // per rank: the action to run next
  std::vector<double> clock_;  // per rank: the end of the last action
  int64_t num_micro_batches_ = 0;
  std::vector<Time> forward_end_;  // per virtual stage and micro-batch
  std::vector<Time> backward_end_;
};

}  // namespace

double PipelineTiming::bubble_fraction(int64_t stage) const {
  return makespan > 0 ? 1 - busy[static_cast<size_t>(stage)] / makespan : 0;
}

double PipelineTiming::bubble_fraction() const {
  const double worked = std::accumulate(busy.begin(), busy.end(), 0.0);
  return makespan > 0 ? 1 - worked / (makespan * static_cast<double>(busy.size())) : 0;
}

PipelineTiming simulate_pipeline(const std::vector<std::vector<PipelineAction>>& stages,
                                 const std::vector<PipelineCosts>& costs) {
  return Simulation(stages, costs).run();
}

std::vector<std::vector<PipelineAction>> make_all_schedules(PipelineScheduleKind kind,
                                                            PipelineShape shape) {
  std::vector<std::vector<PipelineAction>> stages;
  for (shape.stage = 0; shape.stage < shape.num_stages; ++shape.stage)
    stages.push_back(make_schedule(kind, shape));
  return stages;
}

}  // namespace phalanx
