// The rules of every axis, and of axes together.
#include "core/layout_validate.h"

#include <algorithm>
#include <numeric>

#include "core/model/problems.h"
#include "core/model/stage_options.h"
#include "parallel/context_parallel.h"
#include "parallel/device_mesh.h"
#include "parallel/pipeline_schedule.h"

namespace phalanx {
namespace {

void append(Problems& problems, Problems more) {
  std::ranges::move(more, std::back_inserter(problems));
}

/// Problem unless `parts` divides `whole`; proposes sizes of `option` that do.
void divides(Problems& problems, std::string_view option, int64_t parts, std::string_view what,
             int64_t whole) {
  if (whole % parts == 0) return;
  report(problems, "{} {} does not divide {} {}; the nearest that does is {}", option, parts, what,
         whole, nearest_divisor(parts, whole));
}

void validate_tensor(Problems& problems, const RunConfig& config) {
  constexpr std::string_view kOption = "tensor-model-parallel-size";
  const ModelConfig& model = config.model;
  const int64_t tp = config.parallel.tensor_model_parallel_size;
  divides(problems, kOption, tp, "num-attention-heads", model.num_attention_heads);
  const int64_t groups = model.query_groups();
  if (groups > 0 && groups % tp != 0 && tp % groups != 0)
    report(problems,
           "{} {} neither divides num-query-groups {} nor is a multiple of it; try {} or {}",
           kOption, tp, groups, nearest_divisor(tp, groups), (tp + groups - 1) / groups * groups);
  if (model.num_experts == 0)
    divides(problems, kOption, tp, "ffn-hidden-size", model.ffn_hidden_size);
  if (model.vocab_size > 0)
    divides(problems, kOption, tp, "the padded vocabulary (make-vocab-size-divisible-by) of",
            model.padded_vocab_size());
}

void validate_positions(Problems& problems, const RunConfig& config) {
  const ModelConfig& model = config.model;
  const int64_t positions = config.data.seq_length;
  const int64_t cp = config.parallel.context_parallel_size;
  const int64_t tp = config.parallel.tensor_model_parallel_size;
  int64_t multiple = 1;
  if (model.phd == PhdMode::cswa && model.phd_copies > 1 &&
      model.phd_window_unit == WindowUnit::positions)
    multiple = model.phd_chunk;
  if (model.sparse_pattern != KeyPattern::full) multiple = std::lcm(multiple, model.sparse_block);
  append(problems, validate_context(positions, cp, multiple));
  if (!config.parallel.sequence_parallel || positions % (cp * tp) == 0) return;
  report(problems,
         "sequence-parallel cuts seq-length {} over {} context x {} tensor ranks, which does not "
         "come out even; try seq-length {} or {}",
         positions, cp, tp, std::max<int64_t>(1, positions / (cp * tp)) * cp * tp,
         (positions / (cp * tp) + 1) * cp * tp);
}

int64_t num_micro_batches(const RunConfig& config, int64_t world_size) {
  const ParallelConfig& parallel = config.parallel;
  const int64_t ranks = parallel.tensor_model_parallel_size *
                        parallel.pipeline_model_parallel_size * parallel.context_parallel_size;
  const int64_t data_ranks = std::max<int64_t>(1, world_size / ranks);
  return std::max<int64_t>(
      1, config.training.global_batch_size / (config.training.micro_batch_size * data_ranks));
}

void validate_pipeline(Problems& problems, const RunConfig& config, int64_t world_size) {
  const ParallelConfig& parallel = config.parallel;
  const int64_t pp = parallel.pipeline_model_parallel_size;
  const int64_t chunks = parallel.num_virtual_stages_per_pipeline_rank;
  if (!at_least(problems, "num-virtual-stages-per-pipeline-rank", chunks, 1)) return;
  if (pp * chunks > config.model.num_layers)
    report(problems,
           "pipeline-model-parallel-size {} x num-virtual-stages-per-pipeline-rank {} is more "
           "than num-layers {}; the most stages are {}",
           pp, chunks, config.model.num_layers, config.model.num_layers);
  append(problems, validate_schedule(parallel.pipeline_schedule, pp, chunks,
                                     num_micro_batches(config, world_size)));
  try {
    if (!parallel.pipeline_layout.empty())
      parse_pipeline_layout(parallel.pipeline_layout, config.model.num_layers, pp * chunks);
  } catch (const UsageError& error) {
    problems.emplace_back(error.what());
  }
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

}  // namespace

std::vector<std::string> validate_layout(const RunConfig& config, int64_t world_size) {
  const ParallelConfig& parallel = config.parallel;
  // Sizes that do not fit the number of ranks are asked about the model all the same, so that a
  // user hears everything at once; there is nothing to divide by below 1.
  for (const int64_t size :
       {parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size,
        parallel.context_parallel_size, parallel.expert_model_parallel_size,
        parallel.expert_tensor_parallel_size})
    if (size < 1) return {};
  if (config.training.micro_batch_size < 1) return {};
  Problems problems;
  validate_tensor(problems, config);
  validate_positions(problems, config);
  validate_pipeline(problems, config, world_size);
  validate_recompute(problems, config);
  append(problems, validate_experts(config.model, parallel));
  return problems;
}

}  // namespace phalanx
