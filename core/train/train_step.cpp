// The training step.
#include "core/train/train_step.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/train/learning_rate.h"

namespace phalanx {
namespace {

/// Local sums over the step become global means.
void reduce_losses(StepMetrics& metrics, const LossSums& sums, double router_terms,
                   const ProcessGroups& groups) {
  const auto tokens = static_cast<double>(metrics.loss_tokens);
  const LossSums global = sum_over_ranks(sums, groups);
  metrics.loss = global.cross_entropy / tokens;
  metrics.z_loss = global.z / tokens;
  metrics.router_balance_loss = global.router_balance / router_terms;
  metrics.router_z_loss = global.router_z / router_terms;
}

/// The same answer on every rank, whatever rounding did to each one's copy of the sums.
bool any_rank_not_finite(const TrainState& state, const StepMetrics& metrics) {
  const double objective = metrics.loss + state.config.z_loss_coeff * metrics.z_loss;
  const bool finite = std::isfinite(objective) && std::isfinite(metrics.gradient_norm);
  return state.groups.world->all_reduce(int64_t{finite ? 0 : 1}, ReduceOp::max) != 0;
}

void count_step(TrainCounters& counters, const GlobalBatch& batch, const StepMetrics& metrics) {
  ++counters.step;
  counters.consumed_samples += batch.num_samples;
  counters.consumed_tokens += metrics.tokens;
  counters.skipped_steps += metrics.skipped ? 1 : 0;
  counters.skipped_in_row = metrics.skipped ? counters.skipped_in_row + 1 : 0;
}

void run_micro_batches(TrainState& state) {
  {
    const TraceRange range("forward and backward", TraceLane::phase);
    state.pipeline.run(state.stage);
  }
  const TraceRange range("gradient sync", TraceLane::phase);
  state.gradients.finish_sync();
}

}  // namespace

int64_t count_loss_tokens(const GlobalBatch& batch, ProcessGroup& group) {
  int64_t count = 0;
  for (const MicroBatch& micro_batch : batch.micro_batches)
    count += std::count_if(micro_batch.targets.begin(), micro_batch.targets.end(),
                           [](int32_t target) { return target != kIgnoreTarget; });
  return group.all_reduce(count, ReduceOp::sum);
}

StepMetrics train_step(TrainState& state, const GlobalBatch& batch) {
  StepMetrics metrics;
  metrics.tokens = batch.num_samples * batch.micro_batches.front().positions;
  metrics.loss_tokens = count_loss_tokens(batch, *state.groups.dp);
  check(metrics.loss_tokens > 0, "no token of step ", state.counters.step + 1,
        " has a loss; are all its targets masked?");
  state.gradients.zero();
  const int64_t global_micro_batches =
      static_cast<int64_t>(batch.micro_batches.size()) * state.groups.dp->size();
  state.stage.begin_step(
      batch.micro_batches,
      {.loss_tokens = metrics.loss_tokens, .micro_batches = global_micro_batches}, state.gradients);
  run_micro_batches(state);
  reduce_losses(metrics, state.stage.loss_sums(),
                static_cast<double>(state.config.num_layers * global_micro_batches), state.groups);
  metrics.gradient_norm = state.optimizer.gradient_norm();
  // Skipped steps are no updates, so that a skip does not shorten the warm-up (as Megatron).
  metrics.learning_rate =
      learning_rate(state.config.optimizer, state.config.train_iters, state.optimizer.num_steps());
  metrics.skipped = any_rank_not_finite(state, metrics);
  if (!metrics.skipped) {
    const TraceRange range("update", TraceLane::phase);
    state.optimizer.step(metrics.learning_rate,
                         clip_factor(metrics.gradient_norm, state.config.optimizer.clip_grad));
    state.gradients.gather_weights();
  }
  count_step(state.counters, batch, metrics);
  return metrics;
}

void stop_if_diverged(const TrainState& state, const StepMetrics& metrics) {
  const TrainCounters& counters = state.counters;
  if (!metrics.skipped || counters.skipped_in_row < state.config.max_skipped_in_row) return;
  throw DivergedError(fmt::format(
      "step {}: loss or gradient is not finite for {} steps in a row (loss {}, z loss {}, gradient "
      "norm {}, learning rate {}): the run has diverged. Lower --lr, lengthen --lr-warmup-iters, "
      "or raise --max-skipped-in-row {}",
      counters.step, counters.skipped_in_row, metrics.loss, metrics.z_loss, metrics.gradient_norm,
      metrics.learning_rate, state.config.max_skipped_in_row));
}

}  // namespace phalanx
