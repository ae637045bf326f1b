// One training step, from the batch to the gathered parameters.
#pragma once

#include <cstdint>

#include "core/train/train_state.h"
#include "data/batch_loader.h"
#include "kernels/base/error.h"

namespace phalanx {

/// What a step tells. Losses are global sums over global loss tokens, the same on every rank.
struct StepMetrics {
  double loss = 0;           // cross-entropy per loss token
  double z_loss = 0;         // logsumexp^2 per loss token, without its coefficient
  double gradient_norm = 0;  // before clipping
  double learning_rate = 0;  // of this step's update
  int64_t loss_tokens = 0;
  int64_t tokens = 0;              // original tokens (positions), with or without loss
  double router_balance_loss = 0;  // mean over layers and micro-batches, without coefficient
  double router_z_loss = 0;
  bool skipped = false;  // loss or gradient was not finite: weights are as before the step
};

/// Positions with a target in the global batch. Collective over `group`, the ranks that read
/// different sequences (dp); call before the backward,
/// because every later reduction is then a plain sum.
int64_t count_loss_tokens(const GlobalBatch& batch, ProcessGroup& group);

/// Runs a global batch (this rank's part of it) through forward, backward and update. Collective
/// over the world. If the objective (cross-entropy + z coefficient * z) or the gradient norm is not
/// finite, all ranks skip the update alike. After the first step it does not allocate in a group of
/// one.
StepMetrics train_step(TrainState& state, const GlobalBatch& batch);

/// Loss or gradient was not finite for too many steps in a row.
class DivergedError : public Error {
 public:
  using Error::Error;
};

/// Throws DivergedError, on all ranks alike, when `metrics` is of the max_skipped_in_row-th skipped
/// step in a row. Apart from `train_step`, so that the last step is logged before the run ends.
void stop_if_diverged(const TrainState& state, const StepMetrics& metrics);

}  // namespace phalanx
