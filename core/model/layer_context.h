// What every layer of the model is built with, and the inputs that all layers of a micro-batch
// share.
#pragma once

#include <fmt/format.h>

#include <string>

#include "core/model/model_config.h"
#include "parallel/parallel_config.h"
#include "parallel/tensor_parallel.h"

namespace phalanx {

/// The ranks that share a layer's experts (expert view of the mesh).
struct ExpertGroups {
  ProcessGroup& ep;         // each has other experts
  ProcessGroup& expert_tp;  // share the matrices of the same experts
};

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
  /// Rows inside tensor-parallel regions per row outside: tp with sequence parallel, else 1.
  int64_t row_factor() const {
    return parallel.sequence_parallel == SequenceParallel::on ? parallel.tp.size() : 1;
  }
};

/// Sizes and per-micro-batch tensors that attention needs beside the activations.
struct SequenceInputs {
  int64_t positions = 0;  // S
  int64_t sequences = 0;  // B
  Tensor rope_table;      // [P, D] f32
  Tensor position_ids;    // [S, B] i32, or absent
  Tensor document_start;  // [B, S] i32, or absent
};

}  // namespace phalanx
