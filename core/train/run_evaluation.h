// The loss of a trained model on the validation split.
#pragma once

#include <cstdint>
#include <string>

#include "core/config.h"
#include "kernels/backend.h"
#include "parallel/device_mesh.h"
#include "parallel/process_groups.h"

namespace phalanx {

struct EvaluationResult {
  double loss;        // mean cross-entropy per loss token; z-loss is not part of it
  double perplexity;  // e^loss
  int64_t tokens;     // with a loss
};

/// Evaluates LOAD/weights.h5 on one pass over the validation split (blends with weights and mock
/// data, which have no end: eval-iters global batches). The same number for any number of ranks up
/// to the order of summation. Collective over the world.
EvaluationResult run_evaluation(const RunConfig& config, const std::string& load_dir,
                                Backend& backend, ProcessGroups& groups, const DeviceMesh& mesh);

}  // namespace phalanx
