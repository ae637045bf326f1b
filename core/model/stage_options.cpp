// Layers per stage by cost, and the recompute words.
#include "core/model/stage_options.h"

#include <fmt/format.h>

#include "core/model/model_cost.h"

namespace phalanx {

std::vector<LayerRange> pipeline_stages(const ModelConfig& model, const ParallelConfig& parallel,
                                        int64_t seq_length) {
  const int64_t num_stages =
      parallel.pipeline_model_parallel_size * parallel.num_virtual_stages_per_pipeline_rank;
  if (!parallel.pipeline_layout.empty())
    return parse_pipeline_layout(parallel.pipeline_layout, model.num_layers, num_stages);
  if (num_stages == 1) return {{0, model.num_layers}};
  std::vector<double> costs;
  for (int64_t layer = 0; layer < model.num_layers; ++layer)
    costs.push_back(layer_forward_flops(model, layer, seq_length));
  // The embedding is a copy of rows: no products.
  return balance_layers(costs, 0.0, head_forward_flops(model), num_stages);
}

Recompute recompute_of(const ParallelConfig& parallel, int64_t pp_rank) {
  const std::vector<std::string>& words = parallel.recompute;
  if (words.empty()) return Recompute::none;
  const auto size = static_cast<size_t>(parallel.pipeline_model_parallel_size);
  check_usage(words.size() == 1 || words.size() == size, "recompute has ", words.size(),
              " words for ", size, " pipeline ranks; give one for all, or one for each");
  const std::string& word = words[words.size() == 1 ? 0 : static_cast<size_t>(pp_rank)];
  try {
    return parse_enum<Recompute>(word);
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("recompute: {}", error.what()));
  }
}

StageOptions stage_options(const ModelConfig& model, const ParallelConfig& parallel,
                           int64_t seq_length, int64_t pp_rank) {
  return {.sequence_parallel =
              parallel.sequence_parallel ? SequenceParallel::on : SequenceParallel::off,
          .stages = pipeline_stages(model, parallel, seq_length),
          .recompute = recompute_of(parallel, pp_rank)};
}

}  // namespace phalanx
