// The schedules, and how many micro-batches they keep alive.
#include "parallel/pipeline_schedule.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

using enum PipelineActionKind;
using Actions = std::vector<PipelineAction>;

void check_shape(const PipelineShape& shape) {
  check(0 <= shape.stage && shape.stage < shape.num_stages, "pipeline stage ", shape.stage,
        " is not one of ", shape.num_stages);
  check(shape.num_micro_batches >= 1 && shape.num_chunks >= 1, "a schedule of ",
        shape.num_micro_batches, " micro-batches and ", shape.num_chunks,
        " chunks; both must be at least 1");
}

// Backwards run last in, first out (Huang et al. 2019, figure 2): the newest activations go first.
Actions gpipe(const PipelineShape& shape) {
  Actions actions;
  for (int64_t i = 0; i < shape.num_micro_batches; ++i) actions.push_back({forward, i, 0});
  for (int64_t i = shape.num_micro_batches - 1; i >= 0; --i) actions.push_back({backward, i, 0});
  return actions;
}

/// The i-th forward of a rank: `num_stages` micro-batches go through one chunk, then through the
/// next, so that a micro-batch comes back from the last rank just when the first one is free.
PipelineAction forward_at(const PipelineShape& shape, int64_t i) {
  const int64_t group = shape.num_stages * shape.num_chunks;
  return {forward, i / group * shape.num_stages + i % shape.num_stages,
          i % group / shape.num_stages};
}

/// The i-th backward: the same, from the last chunk to the first.
PipelineAction backward_at(const PipelineShape& shape, int64_t i) {
  PipelineAction action = forward_at(shape, i);
  action.kind = backward;
  action.chunk = shape.num_chunks - 1 - action.chunk;
  return action;
}

/// `warm_up` forwards, then a forward and a backward in turn, then the backwards left.
Actions one_in_turn(const PipelineShape& shape, int64_t warm_up) {
  const int64_t count = shape.num_micro_batches * shape.num_chunks;
  warm_up = std::min(warm_up, count);
  Actions actions;
  for (int64_t i = 0; i < count + warm_up; ++i) {
    if (i < count) actions.push_back(forward_at(shape, i));
    if (i >= warm_up) actions.push_back(backward_at(shape, i - warm_up));
  }
  return actions;
}

// A stage runs ahead by the number of stages behind it: that long the first backward takes to come
// back.
Actions one_forward_one_backward(const PipelineShape& shape) {
  return one_in_turn(shape, shape.num_stages - shape.stage - 1);
}

// The chunks before the last go first; a step of the way to the last rank and back takes two.
Actions interleaved(const PipelineShape& shape) {
  return one_in_turn(
      shape, 2 * (shape.num_stages - shape.stage - 1) + (shape.num_chunks - 1) * shape.num_stages);
}

// Weight halves lag behind by the stage's number: what the later stages save at the start, where
// they wait for nobody's weight halves, they have left to do at the end, where they would idle.
Actions zero_bubble(const PipelineShape& shape) {
  const int64_t lag = std::min(shape.stage, shape.num_micro_batches);
  Actions actions;
  for (const PipelineAction& action : one_forward_one_backward(shape)) {
    if (action.kind == forward) {
      actions.push_back(action);
      continue;
    }
    actions.push_back({backward_input, action.micro_batch, 0});
    if (action.micro_batch >= lag)
      actions.push_back({backward_weight, action.micro_batch - lag, 0});
  }
  for (int64_t i = shape.num_micro_batches - lag; i < shape.num_micro_batches; ++i)
    actions.push_back({backward_weight, i, 0});
  return actions;
}

/// "8", or "4 or 8": the multiples of `factor` around `value`, at least one of it.
std::string nearest_multiples(int64_t value, int64_t factor) {
  const int64_t below = value / factor * factor;
  if (below == 0) return fmt::format("{}", factor);
  return fmt::format("{} or {}", below, below + factor);
}

}  // namespace

const char* action_name(PipelineActionKind kind) {
  constexpr const char* kNames[] = {"forward", "backward", "backward_input", "backward_weight"};
  return kNames[static_cast<size_t>(kind)];
}

PipelineScheduleKind resolve_schedule(PipelineScheduleKind kind, int64_t num_chunks) {
  if (kind != PipelineScheduleKind::automatic) return kind;
  return num_chunks > 1 ? PipelineScheduleKind::interleaved
                        : PipelineScheduleKind::one_forward_one_backward;
}

std::vector<std::string> validate_schedule(PipelineScheduleKind kind, int64_t num_stages,
                                           int64_t num_chunks, int64_t num_micro_batches) {
  std::vector<std::string> problems;
  const PipelineScheduleKind resolved = resolve_schedule(kind, num_chunks);
  const std::string_view name = enum_name(resolved);
  const bool is_interleaved = resolved == PipelineScheduleKind::interleaved;
  if (num_micro_batches < 1)
    problems.push_back(
        fmt::format("{} micro-batches per step cannot run; use 1 or more", num_micro_batches));
  if (num_stages < 1 || num_chunks < 1) {
    problems.push_back(
        fmt::format("pipeline-model-parallel-size {} and num-virtual-stages-per-pipeline-rank {} "
                    "must both be 1 or more",
                    num_stages, num_chunks));
    return problems;
  }
  if (num_chunks > 1 && !is_interleaved)
    problems.push_back(
        fmt::format("pipeline-schedule {} has one virtual stage per rank, but "
                    "num-virtual-stages-per-pipeline-rank is {}; use 1, or pipeline-schedule "
                    "interleaved",
                    name, num_chunks));
  if (num_chunks == 1 && is_interleaved)
    problems.push_back(
        "pipeline-schedule interleaved needs num-virtual-stages-per-pipeline-rank 2 or more; with "
        "1 "
        "use pipeline-schedule 1f1b");
  if (is_interleaved && num_micro_batches % num_stages != 0)
    problems.push_back(fmt::format(
        "pipeline-schedule interleaved runs groups of pipeline-model-parallel-size {} "
        "micro-batches, which does not divide the {} micro-batches of a step; use {}",
        num_stages, num_micro_batches, nearest_multiples(num_micro_batches, num_stages)));
  return problems;
}

std::vector<PipelineAction> make_schedule(PipelineScheduleKind kind, const PipelineShape& shape) {
  const std::vector<std::string> problems =
      validate_schedule(kind, shape.num_stages, shape.num_chunks, shape.num_micro_batches);
  check_usage(problems.empty(), problems.empty() ? "" : problems.front());
  check_shape(shape);
  switch (resolve_schedule(kind, shape.num_chunks)) {
    case PipelineScheduleKind::gpipe:
      return gpipe(shape);
    case PipelineScheduleKind::interleaved:
      return interleaved(shape);
    case PipelineScheduleKind::zero_bubble:
      return zero_bubble(shape);
    case PipelineScheduleKind::one_forward_one_backward:
    case PipelineScheduleKind::automatic:
      break;
  }
  return one_forward_one_backward(shape);
}

std::vector<PipelineAction> make_forward_schedule(const PipelineShape& shape) {
  check_shape(shape);
  Actions actions;
  for (int64_t begin = 0; begin < shape.num_micro_batches; begin += shape.num_stages) {
    const int64_t end = std::min(begin + shape.num_stages, shape.num_micro_batches);
    for (int64_t chunk = 0; chunk < shape.num_chunks; ++chunk)
      for (int64_t i = begin; i < end; ++i) actions.push_back({forward, i, chunk});
  }
  return actions;
}

int64_t max_in_flight(const std::vector<PipelineAction>& actions, int64_t chunk) {
  int64_t in_flight = 0;
  int64_t most = 0;
  for (const PipelineAction& action : actions) {
    if (action.chunk != chunk || action.kind == backward_input) continue;
    in_flight += action.kind == forward ? 1 : -1;
    most = std::max(most, in_flight);
  }
  return most;
}

}  // namespace phalanx
