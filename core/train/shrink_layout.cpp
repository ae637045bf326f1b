// Smallest sizes that keep a layout's structure.
#include "core/train/shrink_layout.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "core/model/model_cost.h"
#include "core/model/stage_options.h"

namespace phalanx {
namespace {

constexpr int64_t kFeedForwardPerRank = 12;  // no multiple of a vector register
constexpr int64_t kPositions = 32;           // at least
constexpr int64_t kPositionsPerPiece = 4;    // of a context rank's two pieces, at least
constexpr int64_t kBuckets = 4;              // of gradients, so that several are under way

/// Layers of each virtual stage: their order by size stays, the steps between sizes become one. A
/// stage of several layers keeps at least two, because layers hand on to each other.
std::vector<int64_t> shrink_stages(const std::vector<LayerRange>& stages) {
  std::set<int64_t> sizes;
  for (const LayerRange& stage : stages)
    if (stage.size() > 0) sizes.insert(stage.size());
  const int64_t smallest = std::min<int64_t>(2, *sizes.begin());
  std::vector<int64_t> result;
  for (const LayerRange& stage : stages) {
    const auto rank = std::distance(sizes.begin(), sizes.find(stage.size()));
    result.push_back(stage.size() == 0 ? 0 : smallest + rank);
  }
  return result;
}

std::string layout_text(const std::vector<int64_t>& stages) {
  std::string text;
  for (const int64_t layers : stages) text += (text.empty() ? "" : ",") + std::to_string(layers);
  return text;
}

void shrink_layers(RunConfig& config) {
  ModelConfig& model = config.model;
  ModelConfig with_vocabulary = model;  // the head's cost takes part in the balance
  if (model.vocab_size == 0) with_vocabulary.vocab_size = model.make_vocab_size_divisible_by;
  const auto stages =
      shrink_stages(pipeline_stages(with_vocabulary, config.parallel, config.data.seq_length));
  const int64_t layers = std::accumulate(stages.begin(), stages.end(), int64_t{0});
  if (model.sparse_full_layers > 0) {
    const int64_t scaled = model.sparse_full_layers * layers / model.num_layers;
    const bool all = model.sparse_full_layers == model.num_layers;
    model.sparse_full_layers =
        all ? layers : std::clamp<int64_t>(scaled, 1, std::max<int64_t>(1, layers - 1));
  }
  model.num_layers = layers;
  if (stages.size() > 1) config.parallel.pipeline_layout = layout_text(stages);
}

void shrink_widths(ModelConfig& model, const ParallelConfig& parallel) {
  const int64_t tp = parallel.tensor_model_parallel_size;
  const int64_t query_groups = model.query_groups();
  const int64_t heads_per_group = model.num_attention_heads / query_groups;
  const bool wider = model.hidden_size > model.num_attention_heads * model.head_dim();
  const bool narrower = model.hidden_size < model.num_attention_heads * model.head_dim();
  // Fewer key-value heads than tensor ranks stay as they are: each is kept by several ranks.
  const int64_t groups =
      query_groups % tp == 0 ? tp * std::min<int64_t>(2, query_groups / tp) : query_groups;
  model.num_attention_heads = groups * heads_per_group;
  if (model.num_query_groups > 0) model.num_query_groups = groups;
  const int64_t head_dim = model.num_attention_heads >= 8 ? 4 : 8;
  const int64_t width = model.num_attention_heads * head_dim;
  model.hidden_size = wider ? 2 * width : narrower ? std::max(head_dim, width / 2) : width;
  if (model.kv_channels > 0) model.kv_channels = head_dim;
  model.ffn_hidden_size = kFeedForwardPerRank * tp;
  model.init_method_std = 0.0;  // fits the width
  // A vocabulary that is padded, in whole rows per rank.
  model.make_vocab_size_divisible_by = 4 * tp;
  const int64_t padded = tp <= 2 ? 32 : 12 * tp;
  model.vocab_size = padded - 3;
}

void shrink_experts(ModelConfig& model, const ParallelConfig& parallel) {
  if (model.num_experts == 0) return;
  const int64_t ep = parallel.expert_model_parallel_size;
  // Some experts are left over by every token, if there are any to leave over.
  const int64_t needed = std::min(model.num_experts, model.moe_router_topk + 1);
  const int64_t per_rank = std::max<int64_t>(2, (needed + ep - 1) / ep);
  model.num_experts = ep * std::min(model.num_experts / ep, per_rank);
  model.moe_ffn_hidden_size = kFeedForwardPerRank * parallel.expert_tensor_parallel_size;
}

void shrink_masks(ModelConfig& model) {
  const bool window_fills_chunk = model.phd_window >= model.phd_chunk;
  model.phd_chunk = std::min<int64_t>(4, model.phd_chunk);
  model.phd_window = window_fills_chunk ? model.phd_chunk : std::min<int64_t>(3, model.phd_window);
  model.sparse_block = std::min<int64_t>(2, model.sparse_block);
  model.sparse_sink_blocks = std::min<int64_t>(1, model.sparse_sink_blocks);
  model.sparse_window_blocks = std::min<int64_t>(2, model.sparse_window_blocks);
  model.sparse_stride_blocks = std::min<int64_t>(3, model.sparse_stride_blocks);
  model.sparse_local_blocks = std::min<int64_t>(1, model.sparse_local_blocks);
}

int64_t shrunken_positions(const ModelConfig& model, const ParallelConfig& parallel) {
  const int64_t cp = parallel.context_parallel_size;
  int64_t multiple = model.phd == PhdMode::cswa ? model.phd_chunk : 1;
  if (model.sparse_pattern != KeyPattern::full) multiple = std::lcm(multiple, model.sparse_block);
  if (cp > 1) multiple *= 2 * cp;
  if (parallel.sequence_parallel)
    multiple = std::lcm(multiple, cp * parallel.tensor_model_parallel_size);
  const int64_t least = std::max(kPositions, 2 * cp * kPositionsPerPiece);
  return (least + multiple - 1) / multiple * multiple;
}

}  // namespace

RunConfig shrink_config(const RunConfig& config, int64_t world_size) {
  RunConfig small = config;
  shrink_layers(small);
  shrink_widths(small.model, small.parallel);
  shrink_experts(small.model, small.parallel);
  shrink_masks(small.model);
  small.data.seq_length = shrunken_positions(small.model, small.parallel);
  TrainingConfig& training = small.training;
  training.micro_batch_size = std::min<int64_t>(2, training.micro_batch_size);
  const DeviceMesh mesh(small.parallel, world_size);
  // Twice as many micro-batches as stages: warm-up, steady state and the end of every schedule.
  training.global_batch_size =
      2 * mesh.size(MeshAxis::pp) * mesh.size(MeshAxis::dp) * training.micro_batch_size;
  const int64_t rank_parameters =
      parameter_count(small.model).total / mesh.size(MeshAxis::pp) / mesh.size(MeshAxis::tp);
  small.parallel.ddp_bucket_size =
      std::min(small.parallel.ddp_bucket_size, std::max<int64_t>(1, rank_parameters / kBuckets));
  return small;
}

LayoutCase layout_case(const RunConfig& shrunken) {
  const TrainingConfig& training = shrunken.training;
  LayoutCase result{
      .model = shrunken.model,
      .parallel = shrunken.parallel,
      .optimizer = shrunken.optimizer,
      .shape = {shrunken.data.seq_length, training.micro_batch_size},
      .num_micro_batches = training.global_batch_size / training.micro_batch_size,
      .dtype = DType::f32,
      .seed = static_cast<uint64_t>(training.seed),
      .documents = shrunken.data.reset_attention_mask || shrunken.data.reset_position_ids};
  // Steps large enough that the second one shows whether the first reached every rank.
  result.optimizer.lr = 1e-2;
  result.optimizer.adam_eps = 1e-2;
  result.optimizer.lr_decay_style = LearningRateDecay::constant;
  result.optimizer.lr_warmup_iters = 0;
  return result;
}

}  // namespace phalanx
