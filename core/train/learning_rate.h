// The learning rate of a step: warm-up, then constant, linear, cosine or WSD, as Megatron defines
// them. Pure functions.
#pragma once

#include <cstdint>

#include "parallel/optimizer_config.h"

namespace phalanx {

/// Learning rate of the update that follows `num_updates` updates (0 for the first), as
/// OptimizerParamScheduler.get_lr of Megatron Core: linear from lr-warmup-init to lr over
/// lr-warmup-iters, so that the first update of a warm-up runs at lr-warmup-init; then the decay
/// style down to min-lr at lr-decay-iters (0: `train_iters`); min-lr afterwards. Skipped steps are
/// no updates. Throws UsageError if the decay ends before the warm-up does.
double learning_rate(const OptimizerConfig& config, int64_t train_iters, int64_t num_updates);

}  // namespace phalanx
