// What every layer of the model is built with, and the inputs that all layers of a micro-batch
// share.
#pragma once

#include <fmt/format.h>

#include <string>

#include "core/model/model_config.h"
#include "parallel/expert_parallel.h"
#include "parallel/parallel_config.h"
#include "parallel/tensor_parallel.h"

namespace phalanx {

struct LayerContext {
  const ModelConfig& config;
  int64_t layer;  // global number, 0-based
  TensorParallelContext parallel;
  ProcessGroup& cp;  // share each sequence
  ExpertGroups experts;
  Recompute recompute = Recompute::none;

  /// "layers.03.attention.q.weight" for "attention.q.weight".
  std::string name(const std::string& rest) const {
    return fmt::format("layers.{:02d}.{}", layer, rest);
  }
};

/// The router's own losses of one micro-batch. T rows of the micro-batch over all ranks that share
/// it (cp, and tp under sequence parallel), count_e of their T k choices for expert e:
///   balance = E sum_e (count_e / (T k)) (sum_t p_te / T), z = sum_t logsumexp_t^2 / T
/// (Fedus et al. 2021, eq. 4; Zoph et al. 2022, eq. 5).
struct RouterLoss {
  double balance_scale = 0.0;  // d(objective)/d(balance of one layer)
  double z_scale = 0.0;        // d(objective)/d(z of one layer)
  Tensor sums{};  // [2] f64 += this rank's share of {balance, z}; absent: not counted (recompute)
};

/// Sizes and per-micro-batch tensors that attention needs beside the activations.
struct SequenceInputs {
  int64_t positions = 0;  // S
  int64_t sequences = 0;  // B
  Tensor rope_table;      // [P, D] f32
  Tensor position_ids;    // [S, B] i32, or absent
  Tensor document_start;  // [B, S] i32, or absent
  RouterLoss router_loss;
};

}  // namespace phalanx
