// OptimizerConfig: AdamW, clipping and the learning-rate schedule, under Megatron's option names.
#pragma once

#include <cstdint>

#include "kernels/base/enum_names.h"
#include "kernels/base/fields.h"

namespace phalanx {

enum class LearningRateDecay : uint8_t { constant, linear, cosine, wsd };
template <>
struct EnumNames<LearningRateDecay> {
  static constexpr std::pair<LearningRateDecay, std::string_view> table[] = {
      {LearningRateDecay::constant, "constant"},
      {LearningRateDecay::linear, "linear"},
      {LearningRateDecay::cosine, "cosine"},
      {LearningRateDecay::wsd, "WSD"}};
};

struct OptimizerConfig {
  double lr = 3e-4;
  double min_lr = 3e-5;
  LearningRateDecay lr_decay_style = LearningRateDecay::cosine;
  int64_t lr_decay_iters = 0;  // 0: train-iters
  int64_t lr_warmup_iters = 0;
  double lr_warmup_init = 0.0;
  int64_t lr_wsd_decay_iters = 0;  // 0: a tenth of lr_decay_iters
  double weight_decay = 0.1;
  bool decay_norm_and_bias = true;  // as HybridNorm's released runs
  bool decay_embedding = false;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.95;
  double adam_eps = 1e-8;
  double clip_grad = 1.0;  // 0: no clipping
};

template <class Config, class Visitor>
requires ConfigOf<Config, OptimizerConfig>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Optimizer");
  visit("lr", config.lr, "peak learning rate");
  visit("min-lr", config.min_lr, "learning rate after decay");
  visit("lr-decay-style", config.lr_decay_style, "shape of the decay");
  visit("lr-decay-iters", config.lr_decay_iters, "steps until min-lr; 0: train-iters");
  visit("lr-warmup-iters", config.lr_warmup_iters, "steps of linear warm-up");
  visit("lr-warmup-init", config.lr_warmup_init, "learning rate the warm-up starts from");
  visit("lr-wsd-decay-iters", config.lr_wsd_decay_iters,
        "WSD: steps of the final decay; 0: a tenth of lr-decay-iters");
  visit("weight-decay", config.weight_decay, "decoupled weight decay");
  visit("decay-norm-and-bias", config.decay_norm_and_bias, "decay norm weights too");
  visit("decay-embedding", config.decay_embedding, "decay the embedding (and a tied head) too");
  visit("adam-beta1", config.adam_beta1, "decay rate of the first moment");
  visit("adam-beta2", config.adam_beta2, "decay rate of the second moment");
  visit("adam-eps", config.adam_eps, "AdamW epsilon");
  visit("clip-grad", config.clip_grad, "global gradient norm limit; 0: off");
}

}  // namespace phalanx
