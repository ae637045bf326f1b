// A tiny model on one rank for tests: configuration, parameters, stage, gradients, random batches.
#pragma once

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "core/model/phd_stage.h"
#include "kernels/make_backend.h"

namespace phalanx::testing {

/// Small odd sizes: 2 layers, hidden 24, 4 heads of 6, 2 groups, vocabulary 29 padded to 32.
inline ModelConfig tiny_config() {
  ModelConfig config;
  config.num_layers = 2;
  config.hidden_size = 24;
  config.ffn_hidden_size = 20;
  config.num_attention_heads = 4;
  config.num_query_groups = 2;
  config.vocab_size = 29;
  config.make_vocab_size_divisible_by = 32;
  config.phd_window = 3;
  config.phd_chunk = 4;
  return config;
}

inline MicroBatch random_batch(int64_t positions, int64_t sequences, int64_t vocab, unsigned seed) {
  std::mt19937 random(seed);
  MicroBatch batch{.positions = positions, .sequences = sequences};
  for (int64_t i = 0; i < positions * sequences; ++i) {
    batch.tokens.push_back(static_cast<int32_t>(random() % static_cast<unsigned>(vocab)));
    // One target in five takes no loss.
    batch.targets.push_back(random() % 5 == 0
                                ? kIgnoreTarget
                                : static_cast<int32_t>(random() % static_cast<unsigned>(vocab)));
  }
  return batch;
}

inline int64_t count_targets(const std::vector<MicroBatch>& batches) {
  int64_t count = 0;
  for (const MicroBatch& batch : batches)
    for (const int32_t target : batch.targets) count += target != kIgnoreTarget ? 1 : 0;
  return count;
}

class TestModel {
 public:
  TestModel(const ModelConfig& model, const StageShape& shape, DType dtype)
      : config(model),
        backend(make_backend(Device::cpu)),
        groups(make_single_process_groups()),
        stage(config, parameters, *backend, groups) {
    parameters.allocate(*backend, dtype);
    parameters.initialise(*backend, 7);
    gradients =
        std::make_unique<GradientBuffer>(parameters, *backend, groups, GradientBuffer::Options{});
    stage.allocate(shape, dtype);
  }

  /// Objective: (sum of cross-entropy + z_loss * sum of lse^2) / loss tokens, and the routers'
  /// losses as means over layers and micro-batches; gradients too.
  double step(const std::vector<MicroBatch>& batches) {
    const int64_t tokens = count_targets(batches);
    gradients->zero();
    const auto count = static_cast<int64_t>(batches.size());
    stage.begin_step(batches, {.loss_tokens = tokens, .micro_batches = count}, *gradients);
    run_pipeline(make_schedule(PipelineScheduleKind::automatic, {.num_micro_batches = count}),
                 stage, *groups.pp, 1);
    gradients->finish_sync();
    const LossSums sums = stage.loss_sums();
    const double router =
        config.moe_aux_loss_coeff * sums.router_balance + config.moe_z_loss_coeff * sums.router_z;
    return (sums.cross_entropy + config.z_loss_coeff * sums.z) / static_cast<double>(tokens) +
           router / static_cast<double>(config.num_layers * count);
  }

  ModelConfig config;
  std::unique_ptr<Backend> backend;
  ProcessGroups groups;
  ParameterStore parameters;
  PhdStage stage;
  std::unique_ptr<GradientBuffer> gradients;
};

}  // namespace phalanx::testing
