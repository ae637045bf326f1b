// StageOptions: which layers a pipeline rank runs and how; from the configuration.
#pragma once

#include <vector>

#include "core/model/model_config.h"
#include "parallel/parallel_config.h"
#include "parallel/pipeline_layout.h"
#include "parallel/tensor_parallel.h"

namespace phalanx {

struct StageOptions {
  SequenceParallel sequence_parallel = SequenceParallel::off;
  /// Layers of every virtual stage of the whole pipeline; stage v runs on pipeline rank v % pp as
  /// its chunk v / pp. Empty: one stage with all layers.
  std::vector<LayerRange> stages;
  Recompute recompute = Recompute::none;
};

/// Layers of every virtual stage: as --pipeline-layout says, or cut so that the slowest stage has
/// as few FLOPs as possible, with the head and the loss counted at the last (PHD makes a layer K
/// times as expensive, the head not). `model` has its vocabulary. Throws UsageError.
std::vector<LayerRange> pipeline_stages(const ModelConfig& model, const ParallelConfig& parallel,
                                        int64_t seq_length);

/// What pipeline rank `pp_rank` recomputes. Throws UsageError if the words are not one or one per
/// rank, or unknown.
Recompute recompute_of(const ParallelConfig& parallel, int64_t pp_rank);

StageOptions stage_options(const ModelConfig& model, const ParallelConfig& parallel,
                           int64_t seq_length, int64_t pp_rank);

}  // namespace phalanx
