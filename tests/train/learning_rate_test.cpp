// Learning rates against values worked out by hand from Megatron's definition.
#include "core/train/learning_rate.h"

#include <gtest/gtest.h>

#include <cmath>

namespace phalanx {
namespace {

OptimizerConfig schedule(LearningRateDecay style) {
  OptimizerConfig config;
  config.lr = 1.0;
  config.min_lr = 0.2;
  config.lr_decay_style = style;
  config.lr_warmup_iters = 10;
  return config;
}

// c * eps * |scale|: a handful of f64 operations on numbers up to 1.
constexpr double kTolerance = 8 * 0x1p-52;

TEST(LearningRate, WarmUpIsLinearFromItsInitialValue) {
  OptimizerConfig config = schedule(LearningRateDecay::cosine);
  EXPECT_EQ(learning_rate(config, 110, 0), 0.0);
  EXPECT_NEAR(learning_rate(config, 110, 5), 0.5, kTolerance);
  EXPECT_NEAR(learning_rate(config, 110, 10), 1.0, kTolerance);
  config.lr_warmup_init = 0.5;
  EXPECT_NEAR(learning_rate(config, 110, 0), 0.5, kTolerance);
  EXPECT_NEAR(learning_rate(config, 110, 5), 0.75, kTolerance);
}

TEST(LearningRate, CosineHalvesInTheMiddleAndEndsAtTheMinimum) {
  const OptimizerConfig config = schedule(LearningRateDecay::cosine);
  // ratio (35 - 10) / 100 = 1/4: 0.5 (cos(pi/4) + 1) = (2 + sqrt 2) / 4.
  EXPECT_NEAR(learning_rate(config, 110, 35), 0.2 + 0.8 * (2 + std::sqrt(2.0)) / 4, kTolerance);
  EXPECT_NEAR(learning_rate(config, 110, 60), 0.6, kTolerance);
  EXPECT_NEAR(learning_rate(config, 110, 110), 0.2, kTolerance);
  EXPECT_EQ(learning_rate(config, 110, 111), 0.2);
  EXPECT_EQ(learning_rate(config, 110, 5000), 0.2);
}

TEST(LearningRate, LinearFallsEvenly) {
  const OptimizerConfig config = schedule(LearningRateDecay::linear);
  EXPECT_NEAR(learning_rate(config, 110, 35), 0.2 + 0.8 * 0.75, kTolerance);
  EXPECT_NEAR(learning_rate(config, 110, 110), 0.2, kTolerance);
}

TEST(LearningRate, ConstantStaysAfterTheWarmUp) {
  const OptimizerConfig config = schedule(LearningRateDecay::constant);
  EXPECT_NEAR(learning_rate(config, 110, 3), 0.3, kTolerance);
  EXPECT_EQ(learning_rate(config, 110, 11), 1.0);
  EXPECT_EQ(learning_rate(config, 110, 100000), 1.0);
}

TEST(LearningRate, WsdStaysThenFallsExponentially) {
  OptimizerConfig config = schedule(LearningRateDecay::wsd);
  config.lr_wsd_decay_iters = 20;
  EXPECT_NEAR(learning_rate(config, 110, 11), 1.0, kTolerance);
  EXPECT_NEAR(learning_rate(config, 110, 90), 1.0, kTolerance);
  // half of the decay: 2 * 0.5^0.5 - 1 = sqrt 2 - 1.
  EXPECT_NEAR(learning_rate(config, 110, 100), 0.2 + 0.8 * (std::sqrt(2.0) - 1), kTolerance);
  EXPECT_NEAR(learning_rate(config, 110, 110), 0.2, kTolerance);
}

TEST(LearningRate, WsdDecaysOverATenthUnlessTold) {
  const OptimizerConfig config = schedule(LearningRateDecay::wsd);
  EXPECT_NEAR(learning_rate(config, 200, 180), 1.0, kTolerance);
  EXPECT_NEAR(learning_rate(config, 200, 190), 0.2 + 0.8 * (std::sqrt(2.0) - 1), kTolerance);
}

TEST(LearningRate, DecayItersWinOverTrainIters) {
  OptimizerConfig config = schedule(LearningRateDecay::linear);
  config.lr_decay_iters = 60;
  EXPECT_NEAR(learning_rate(config, 110, 35), 0.6, kTolerance);
  EXPECT_EQ(learning_rate(config, 110, 61), 0.2);
}

TEST(LearningRate, NoWarmUpStartsAtThePeak) {
  OptimizerConfig config = schedule(LearningRateDecay::cosine);
  config.lr_warmup_iters = 0;
  EXPECT_NEAR(learning_rate(config, 100, 0), 1.0, kTolerance);
}

TEST(LearningRate, AnEmptyDecayIsAUsageError) {
  OptimizerConfig config = schedule(LearningRateDecay::cosine);
  config.lr_warmup_iters = 0;
  EXPECT_THROW(learning_rate(config, 0, 0), UsageError);
}

}  // namespace
}  // namespace phalanx
