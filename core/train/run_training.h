// A training run from configuration to final weights.
#pragma once

#include <string>

#include "core/config.h"
#include "kernels/backend.h"
#include "parallel/device_mesh.h"
#include "parallel/process_groups.h"

namespace phalanx {

/// Why a run ended before its last step. In the order of importance.
enum class StopReason : uint8_t { none, duration, signal, stop_file, diverged };

struct TrainingResult {
  double final_loss;       // cross-entropy of the last step that was not skipped; NaN if none
  double validation_loss;  // of the last evaluation; NaN without validation data
  int64_t steps;           // done, those of earlier starts included
  StopReason stopped;
};

/// Trains as `config` says and writes RUN/config.ini (the text `config_ini`), metrics.jsonl,
/// tensorboard/, checkpoints and weights.h5. Goes on from the newest good checkpoint if there is
/// one. Prints the plan before it takes memory; throws UsageError if it does not fit. Ends after
/// the current step, with a checkpoint, when `stop_requested()` is set on any rank, its time is
/// over, RUN/STOP appears, or it has diverged. Collective over the world.
TrainingResult run_training(const RunConfig& config, const std::string& config_ini,
                            Backend& backend, ProcessGroups& groups, const DeviceMesh& mesh);

}  // namespace phalanx
