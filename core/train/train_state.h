// TrainState: everything a training step changes or needs, by reference to its owners.
#pragma once

#include <cstdint>
#include <vector>

#include "core/checkpoint/train_counters.h"
#include "core/model/phd_stage.h"
#include "parallel/distributed_optimizer.h"
#include "parallel/gradient_buffer.h"
#include "parallel/optimizer_config.h"
#include "parallel/pipeline_executor.h"
#include "parallel/process_groups.h"

namespace phalanx {

/// What a step reads and never changes.
struct StepConfig {
  OptimizerConfig optimizer;
  int64_t train_iters = 0;
  double z_loss_coeff = 0.0;
  int64_t num_layers = 1;  // over which router losses are averaged
  int64_t max_skipped_in_row = 10;
};

/// Owns the counters and the pipeline; the rest belongs to the trainer and outlives it. One thread.
struct TrainState {
  StepConfig config;
  PipelineExecutor pipeline;
  PhdStage& stage;
  GradientBuffer& gradients;
  DistributedOptimizer& optimizer;
  ProcessGroups& groups;
  TrainCounters counters = {};
};

}  // namespace phalanx
