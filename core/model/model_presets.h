// Named models: shapes and recipes of the papers, and two that train on a laptop.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/model/model_config.h"
#include "parallel/optimizer_config.h"

namespace phalanx {

struct ModelPreset {
  std::string name;
  std::string description;
  ModelConfig model;
  OptimizerConfig optimizer;
  int64_t seq_length = 4096;
  int64_t global_batch_size = 1024;  // sequences per step
  double paper_tokens = 0;           // tokens the paper trained on; 0: no paper
};

/// All of them, in the order they are listed to users.
const std::vector<ModelPreset>& model_presets();

/// The preset called `name`, or nullptr.
const ModelPreset* find_model_preset(std::string_view name);

}  // namespace phalanx
