// Costs of stages from FLOPs, and the texts about them.
#include "core/train/pipeline_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "core/model/model_cost.h"

namespace phalanx {
namespace {

int64_t stage_count(const ParallelConfig& parallel) {
  return parallel.pipeline_model_parallel_size * parallel.num_virtual_stages_per_pipeline_rank;
}

struct StageFlops {
  double layers = 0;
  double head = 0;
  double total() const { return layers + head; }
};

/// Forward FLOPs per token of each virtual stage.
std::vector<StageFlops> stage_flops(const PipelineQuestion& question,
                                    const std::vector<LayerRange>& stages) {
  std::vector<StageFlops> flops;
  for (const LayerRange& stage : stages) {
    StageFlops& sum = flops.emplace_back();
    for (int64_t layer = stage.begin; layer < stage.end; ++layer)
      sum.layers += layer_forward_flops(question.model, layer, question.seq_length);
  }
  flops.back().head = head_forward_flops(question.model);
  return flops;
}

std::vector<LayerRange> stages_of(const PipelineQuestion& question) {
  return pipeline_stages(question.model, question.parallel, question.seq_length);
}

std::string layers_text(const LayerRange& stage) {
  if (stage.size() == 0) return "no layers";
  if (stage.size() == 1) return fmt::format("layer {}", stage.begin);
  return fmt::format("layers {}-{}", stage.begin, stage.end - 1);
}

std::string stage_lines(const PipelineQuestion& question) {
  const auto stages = stages_of(question);
  const auto flops = stage_flops(question, stages);
  const double all = std::accumulate(flops.begin(), flops.end(), 0.0,
                                     [](double sum, const auto& f) { return sum + f.total(); });
  std::string text;
  for (size_t i = 0; i < stages.size(); ++i) {
    const int64_t rank = static_cast<int64_t>(i) % question.parallel.pipeline_model_parallel_size;
    const Recompute recompute = recompute_of(question.parallel, rank);
    text += fmt::format(
        "   stage {} on pipeline rank {}: {}{}{}, {:.1f} % of the FLOPs{}\n", i, rank,
        i == 0 ? "embedding, " : "", layers_text(stages[i]), i + 1 == stages.size() ? ", head" : "",
        100.0 * flops[i].total() / all,
        recompute == Recompute::none ? "" : fmt::format(", recomputes {}", enum_name(recompute)));
  }
  return text;
}

}  // namespace

double predicted_bubble_fraction(const PipelineQuestion& question) {
  const ParallelConfig& parallel = question.parallel;
  if (parallel.pipeline_model_parallel_size == 1) return 0;
  std::vector<PipelineCosts> costs;
  const auto flops = stage_flops(question, stages_of(question));
  for (size_t i = 0; i < flops.size(); ++i) {
    const int64_t rank = static_cast<int64_t>(i) % parallel.pipeline_model_parallel_size;
    const bool again = recompute_of(parallel, rank) == Recompute::layer;
    costs.push_back({.forward = flops[i].total(),
                     .backward_input = flops[i].total() + (again ? flops[i].layers : 0),
                     .backward_weight = flops[i].total()});
  }
  const PipelineShape shape{.num_stages = parallel.pipeline_model_parallel_size,
                            .num_chunks = parallel.num_virtual_stages_per_pipeline_rank,
                            .num_micro_batches = question.num_micro_batches};
  return simulate_pipeline(make_all_schedules(parallel.pipeline_schedule, shape), costs)
      .bubble_fraction();
}

std::string pipeline_text(const PipelineQuestion& question) {
  const ParallelConfig& parallel = question.parallel;
  if (parallel.pipeline_model_parallel_size == 1) {
    const Recompute recompute = recompute_of(parallel, 0);
    return recompute == Recompute::none ? ""
                                        : fmt::format(" recompute: {}\n", enum_name(recompute));
  }
  const int64_t chunks = parallel.num_virtual_stages_per_pipeline_rank;
  return fmt::format(" pipeline: {}, {} stages, {} micro-batches, predicted bubble {:.1f} %\n{}",
                     enum_name(resolve_schedule(parallel.pipeline_schedule, chunks)),
                     stage_count(parallel), question.num_micro_batches,
                     100.0 * predicted_bubble_fraction(question), stage_lines(question));
}

double BubbleMeter::fraction() const {
  const double own = seconds_ > 0 ? waited_ / seconds_ : 0;
  return groups_.world->all_reduce(own, ReduceOp::sum) / static_cast<double>(groups_.world->size());
}

}  // namespace phalanx
