// RunConfig: everything a run is told, gathered from the structs declared beside what they
// configure.
#pragma once

#include <string>
#include <vector>

#include "core/checkpoint/checkpoint_config.h"
#include "core/model/model_config.h"
#include "core/model/model_presets.h"
#include "core/train/training_config.h"
#include "data/data_config.h"
#include "data/tokenizer.h"
#include "parallel/optimizer_config.h"
#include "parallel/parallel_config.h"

namespace phalanx {

struct RunConfig {
  ModelConfig model;
  TrainingConfig training;
  CheckpointConfig checkpoint;
  OptimizerConfig optimizer;
  ParallelConfig parallel;
  DataConfig data;
  TokenizerConfig tokenizer;
};

template <class Config, class Visitor>
requires ConfigOf<Config, RunConfig>
void visit_fields(Config& config, Visitor& visit) {
  visit_fields(config.model, visit);
  visit_fields(config.training, visit);
  visit_fields(config.checkpoint, visit);
  visit_fields(config.optimizer, visit);
  visit_fields(config.parallel, visit);
  visit_fields(config.data, visit);
  visit_fields(config.tokenizer, visit);
}

/// Takes over a named model: its shape, optimizer recipe, sequence length and global batch size.
void apply_preset(RunConfig& config, const ModelPreset& preset);

/// Everything wrong with `config` on `world_size` ranks, all at once: one sentence per problem with
/// option, value and the nearest valid value. Empty if the run can start.
std::vector<std::string> validate(const RunConfig& config, int64_t world_size);

}  // namespace phalanx
