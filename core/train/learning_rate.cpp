// Warm-up and decay of the learning rate.
#include "core/train/learning_rate.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace phalanx {
namespace {

/// WSD (Hu et al. 2024, MiniCPM): 1 until the last `anneal` updates before `decay_end`, then
/// Megatron's default exponential form 2 * 0.5^r - 1, which ends at 0.
double wsd_coefficient(int64_t num_updates, int64_t decay_end, int64_t anneal) {
  const int64_t begin = decay_end - anneal;
  if (num_updates <= begin) return 1.0;
  const double ratio = static_cast<double>(num_updates - begin) / static_cast<double>(anneal);
  return 2.0 * std::pow(0.5, ratio) - 1.0;
}

}  // namespace

double learning_rate(const OptimizerConfig& config, int64_t train_iters, int64_t num_updates) {
  const int64_t warmup = config.lr_warmup_iters;
  if (warmup > 0 && num_updates <= warmup) {
    const double share = static_cast<double>(num_updates) / static_cast<double>(warmup);
    return config.lr_warmup_init + (config.lr - config.lr_warmup_init) * share;
  }
  if (config.lr_decay_style == LearningRateDecay::constant) return config.lr;

  const int64_t decay_end = config.lr_decay_iters > 0 ? config.lr_decay_iters : train_iters;
  if (num_updates > decay_end) return config.min_lr;
  check_usage(decay_end > warmup, "lr-decay-iters ", decay_end, " must exceed lr-warmup-iters ",
              warmup, "; try lr-warmup-iters ", std::max<int64_t>(0, decay_end - 1));
  const double ratio =
      static_cast<double>(num_updates - warmup) / static_cast<double>(decay_end - warmup);
  double coefficient = 1.0;
  switch (config.lr_decay_style) {
    case LearningRateDecay::constant:
      break;
    case LearningRateDecay::linear:
      coefficient = 1.0 - ratio;
      break;
    case LearningRateDecay::cosine:
      coefficient = 0.5 * (std::cos(std::numbers::pi * ratio) + 1.0);
      break;
    case LearningRateDecay::wsd: {
      const int64_t tenth = std::max<int64_t>(1, decay_end / 10);
      coefficient =
          wsd_coefficient(num_updates, decay_end,
                          config.lr_wsd_decay_iters > 0 ? config.lr_wsd_decay_iters : tenth);
      break;
    }
  }
  return config.min_lr + coefficient * (config.lr - config.min_lr);
}

}  // namespace phalanx
