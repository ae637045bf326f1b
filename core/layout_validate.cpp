// The rules of every axis, and of axes together.
#include "core/layout_validate.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "core/model/problems.h"
#include "core/model/stage_options.h"
#include "parallel/context_parallel.h"
#include "parallel/device_mesh.h"
#include "parallel/pipeline_schedule.h"

namespace phalanx {
namespace {

/// Whether `tp` ranks can share every matrix, head and row of the table.
bool tensor_size_fits(const ModelConfig& model, int64_t tp) {
  const int64_t groups = model.query_groups();
  return model.num_attention_heads % tp == 0 && (groups % tp == 0 || tp % groups == 0) &&
         (model.num_experts > 0 || model.ffn_hidden_size % tp == 0) &&
         (model.vocab_size == 0 || model.padded_vocab_size() % tp == 0);
}

void validate_tensor(Problems& problems, const RunConfig& config) {
  const ModelConfig& model = config.model;
  const int64_t tp = config.parallel.tensor_model_parallel_size;
  if (model.query_groups() < 1 || model.make_vocab_size_divisible_by < 1) return;
  // The largest divisor that fits everywhere, because a divisor leaves the mesh one of whole axes.
  int64_t nearest = tp;
  while (nearest > 1 && (tp % nearest != 0 || !tensor_size_fits(model, nearest))) --nearest;
  const auto divides = [&](std::string_view what, int64_t whole) {
    if (whole % tp != 0)
      report(problems, "tensor-model-parallel-size {} does not divide {} {}; try {}", tp, what,
             whole, nearest);
  };
  divides("num-attention-heads", model.num_attention_heads);
  const int64_t groups = model.query_groups();
  if (groups % tp != 0 && tp % groups != 0)
    report(problems,
           "tensor-model-parallel-size {} neither divides num-query-groups {} nor is a multiple of "
           "it; try {}",
           tp, groups, nearest);
  if (model.num_experts == 0) divides("ffn-hidden-size", model.ffn_hidden_size);
  if (model.vocab_size > 0)
    divides("the padded vocabulary (make-vocab-size-divisible-by) of", model.padded_vocab_size());
}

void validate_positions(Problems& problems, const RunConfig& config) {
  const ModelConfig& model = config.model;
  const int64_t positions = config.data.seq_length;
  const int64_t cp = config.parallel.context_parallel_size;
  const int64_t tp =
      config.parallel.sequence_parallel ? config.parallel.tensor_model_parallel_size : 1;
  int64_t multiple = 1;
  if (model.phd == PhdMode::cswa && model.phd_copies > 1 &&
      model.phd_window_unit == WindowUnit::positions)
    multiple = std::max<int64_t>(1, model.phd_chunk);
  if (model.sparse_pattern != KeyPattern::full && cp > 1)
    multiple = std::lcm(multiple, std::max<int64_t>(1, model.sparse_block));
  // Lengths that satisfy both cuts at once.
  const int64_t pieces = cp > 1 ? 2 * cp : 1;
  const int64_t step = std::lcm(pieces * multiple, cp * tp);
  if (positions % (cp * tp) == 0) {
    append(problems, validate_context(positions, cp, step / pieces));
    return;
  }
  const int64_t below = positions / step * step;
  report(problems,
         "sequence-parallel cuts seq-length {} over {} context x {} tensor ranks, which does not "
         "come out even; try seq-length {}{}",
         positions, cp, tp, below > 0 ? fmt::format("{} or ", below) : "", below + step);
}

int64_t num_micro_batches(const RunConfig& config, int64_t world_size) {
  const int64_t data_ranks = data_parallel_size(config.parallel, world_size);
  return std::max<int64_t>(
      1, config.training.global_batch_size / (config.training.micro_batch_size * data_ranks));
}

/// Only the ranks of embedding and head may be without layers.
void every_rank_has_work(Problems& problems, const ParallelConfig& parallel,
                         const std::vector<LayerRange>& stages) {
  const auto ranks = static_cast<size_t>(parallel.pipeline_model_parallel_size);
  for (size_t rank = 1; rank + 1 < ranks; ++rank) {
    int64_t layers = 0;
    for (size_t stage = rank; stage < stages.size(); stage += ranks) layers += stages[stage].size();
    if (layers == 0)
      report(problems,
             "pipeline-layout {} leaves pipeline rank {} without a layer; only the first and the "
             "last rank may be, give it at least 1",
             parallel.pipeline_layout, rank);
  }
}

void validate_pipeline(Problems& problems, const RunConfig& config, int64_t world_size) {
  const ParallelConfig& parallel = config.parallel;
  const int64_t pp = parallel.pipeline_model_parallel_size;
  const int64_t chunks = parallel.num_virtual_stages_per_pipeline_rank;
  const int64_t layers = config.model.num_layers;
  if (pp * chunks > layers) {
    int64_t nearest = std::max<int64_t>(1, std::min(pp, layers / chunks));
    while (pp % nearest != 0) --nearest;
    report(problems,
           "pipeline-model-parallel-size {} x num-virtual-stages-per-pipeline-rank {} is more "
           "than num-layers {}; try pipeline-model-parallel-size {}{}",
           pp, chunks, layers, nearest,
           chunks > layers ? " with num-virtual-stages-per-pipeline-rank 1" : "");
  }
  append(problems, validate_schedule(parallel.pipeline_schedule, pp, chunks,
                                     num_micro_batches(config, world_size)));
  try {
    if (!parallel.pipeline_layout.empty())
      every_rank_has_work(problems, parallel,
                          parse_pipeline_layout(parallel.pipeline_layout, layers, pp * chunks));
  } catch (const UsageError& error) {
    problems.emplace_back(error.what());
  }
}

/// Bounds of what the rules below multiply, far above any machine and far inside int64. Reports
/// what is too large, and what no other rule finds too small.
bool sizes_can_be_multiplied(Problems& problems, const RunConfig& config) {
  constexpr int64_t kMostRanks = int64_t{1} << 20;   // experts and widths too
  constexpr int64_t kMostLayers = int64_t{1} << 12;  // balancing them takes their square
  constexpr int64_t kMostPositions = int64_t{1} << 31;
  const ParallelConfig& parallel = config.parallel;
  const std::tuple<std::string_view, int64_t, int64_t> sizes[] = {
      {"tensor-model-parallel-size", parallel.tensor_model_parallel_size, kMostRanks},
      {"pipeline-model-parallel-size", parallel.pipeline_model_parallel_size, kMostRanks},
      {"context-parallel-size", parallel.context_parallel_size, kMostRanks},
      {"expert-model-parallel-size", parallel.expert_model_parallel_size, kMostRanks},
      {"expert-tensor-parallel-size", parallel.expert_tensor_parallel_size, kMostRanks},
      {"num-virtual-stages-per-pipeline-rank", parallel.num_virtual_stages_per_pipeline_rank,
       kMostRanks},
      {"micro-batch-size", config.training.micro_batch_size, kMostPositions},
      {"seq-length", config.data.seq_length, kMostPositions},
      {"num-layers", config.model.num_layers, kMostLayers},
      {"hidden-size", config.model.hidden_size, kMostRanks},
      {"ffn-hidden-size", config.model.ffn_hidden_size, kMostRanks},
      {"num-attention-heads", config.model.num_attention_heads, kMostRanks},
      {"num-experts", std::max<int64_t>(1, config.model.num_experts), kMostRanks},
      {"phd-chunk", std::max<int64_t>(1, config.model.phd_chunk), kMostPositions},
      {"sparse-block", std::max<int64_t>(1, config.model.sparse_block), kMostPositions}};
  bool fit = at_least(problems, "num-virtual-stages-per-pipeline-rank",
                      parallel.num_virtual_stages_per_pipeline_rank, 1);
  for (const auto& [option, value, most] : sizes) {
    if (value > most)
      report(problems, "{} {} is too large; the largest is {}", option, value, most);
    fit = fit && 1 <= value && value <= most;
  }
  return fit;
}

void validate_recompute(Problems& problems, const RunConfig& config) {
  const ParallelConfig& parallel = config.parallel;
  bool layers = false;
  try {
    for (int64_t rank = 0; rank < parallel.pipeline_model_parallel_size; ++rank)
      layers = layers || recompute_of(parallel, rank) == Recompute::layer;
  } catch (const UsageError& error) {
    problems.emplace_back(error.what());
  }
  const bool split = parallel.pipeline_schedule == PipelineScheduleKind::zero_bubble;
  if (split && layers)
    report(problems,
           "recompute layer frees what the weight half of pipeline-schedule zero-bubble still "
           "reads; use recompute attention, or pipeline-schedule 1f1b");
  if (split && parallel.data_parallel_sharding_strategy == DataParallelSharding::optim_grads_params)
    report(problems,
           "data-parallel-sharding-strategy optim_grads_params frees weights and gradients that "
           "the weight half of pipeline-schedule zero-bubble still needs; use "
           "data-parallel-sharding-strategy optim, or pipeline-schedule 1f1b");
}

// A recording holds what the GPU does: whatever a rank decides or sends in between stays out of it.
void validate_cuda_graph(Problems& problems, const RunConfig& config) {
  if (!config.training.cuda_graph) return;
  const ParallelConfig& parallel = config.parallel;
  const std::pair<std::string_view, int64_t> sizes[] = {
      {"pipeline-model-parallel-size", parallel.pipeline_model_parallel_size},
      {"num-virtual-stages-per-pipeline-rank", parallel.num_virtual_stages_per_pipeline_rank},
      {"tensor-model-parallel-size", parallel.tensor_model_parallel_size},
      {"context-parallel-size", parallel.context_parallel_size}};
  for (const auto& [option, size] : sizes)
    if (size > 1)
      report(problems,
             "cuda-graph records a micro-batch without messages between ranks, and {} {} has some; "
             "try {} 1, or leave cuda-graph out",
             option, size, option);
  const auto kind = parallel.pipeline_schedule;
  if (kind == PipelineScheduleKind::gpipe || kind == PipelineScheduleKind::zero_bubble)
    report(problems,
           "cuda-graph records one micro-batch in flight, and pipeline-schedule {} keeps several; "
           "use auto, or leave cuda-graph out",
           enum_name(kind));
  if (!config.training.profile.empty())
    report(problems,
           "cuda-graph replays ops without their names, and profile {} wants them; leave one out",
           config.training.profile);
  if (config.model.num_experts > 0)
    report(problems,
           "cuda-graph records work of fixed sizes, and experts (num-experts {}) get other rows "
           "every time; leave cuda-graph out",
           config.model.num_experts);
  if (parallel.data_parallel_sharding_strategy == DataParallelSharding::optim_grads_params)
    report(problems,
           "cuda-graph records a micro-batch without messages between ranks, and "
           "data-parallel-sharding-strategy optim_grads_params gathers every layer; use optim, or "
           "leave cuda-graph out");
}

}  // namespace

std::vector<std::string> validate_layout(const RunConfig& config, int64_t world_size) {
  const ParallelConfig& parallel = config.parallel;
  // Sizes that do not fit the number of ranks are asked about the model all the same, so that a
  // user hears everything at once; but there is nothing to divide by below 1.
  Problems problems;
  if (!sizes_can_be_multiplied(problems, config)) return problems;
  validate_tensor(problems, config);
  validate_positions(problems, config);
  validate_pipeline(problems, config, world_size);
  validate_recompute(problems, config);
  validate_cuda_graph(problems, config);
  append(problems, validate_experts(config.model, parallel));
  return problems;
}

}  // namespace phalanx
