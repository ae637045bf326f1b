// What PHD promises, on whole models: copies share all weights, K = 1 is vanilla, nothing looks
// ahead, accumulation and batching change nothing, the memory plan holds.
#include <gtest/gtest.h>

#include "tests/model/test_model.h"

namespace phalanx {
namespace {

using testing::random_batch;
using testing::TestModel;
using testing::tiny_config;

const StageShape kShape{.positions = 16, .sequences = 2};

std::vector<float> logits(TestModel& model, const MicroBatch& batch, int64_t position) {
  return model.stage.last_copy_logits(batch, position);
}

TEST(PhdInvariants, OneCopyIsVanillaInEveryMode) {
  ModelConfig config = tiny_config();
  config.phd = PhdMode::naive;
  TestModel naive(config, kShape, DType::f32);
  config.phd = PhdMode::cswa;
  TestModel cswa(config, kShape, DType::f32);
  const MicroBatch batch = random_batch(16, 2, config.vocab_size, 3);
  EXPECT_EQ(logits(naive, batch, 15), logits(cswa, batch, 15));
}

TEST(PhdInvariants, MoreCopiesAddNoParameters) {
  ModelConfig config = tiny_config();
  TestModel one(config, kShape, DType::f32);
  config.phd_copies = 3;
  TestModel three(config, kShape, DType::f32);
  EXPECT_EQ(one.parameters.numel(), three.parameters.numel());
}

TEST(PhdInvariants, LaterTokensNeverChangeEarlierLogits) {
  for (const PhdMode mode : {PhdMode::naive, PhdMode::phd, PhdMode::swa, PhdMode::cswa}) {
    ModelConfig config = tiny_config();
    config.phd = mode;
    config.phd_copies = 3;
    TestModel model(config, kShape, DType::f32);
    MicroBatch batch = random_batch(16, 2, config.vocab_size, 4);
    const auto before = logits(model, batch, 9);
    for (size_t i = 20; i < batch.tokens.size(); ++i) batch.tokens[i] = (batch.tokens[i] + 1) % 29;
    EXPECT_EQ(before, logits(model, batch, 9)) << enum_name(mode);
    batch.tokens[18] = (batch.tokens[18] + 1) % 29;
    EXPECT_NE(before, logits(model, batch, 9)) << enum_name(mode);
  }
}

// With the band off (W = 1) and copies at shared positions the hidden copy still differs from its
// original: the doubled own-token key is the only symmetry breaker the paper leaves.
TEST(PhdInvariants, HiddenCopiesDoSomething) {
  ModelConfig config = tiny_config();
  TestModel vanilla(config, kShape, DType::f64);
  config.phd_copies = 2;
  config.phd = PhdMode::phd;
  TestModel phd(config, kShape, DType::f64);
  const MicroBatch batch = random_batch(16, 2, config.vocab_size, 6);
  EXPECT_NE(logits(vanilla, batch, 15), logits(phd, batch, 15));
}

TEST(PhdInvariants, AccumulationEqualsOneLargeMicroBatch) {
  ModelConfig config = tiny_config();
  config.phd_copies = 2;
  TestModel split(config, {.positions = 16, .sequences = 1}, DType::f64);
  TestModel whole(config, kShape, DType::f64);
  const MicroBatch both = random_batch(16, 2, config.vocab_size, 8);
  std::vector<MicroBatch> halves(2);
  for (size_t b = 0; b < 2; ++b) {
    halves[b].positions = 16;
    halves[b].sequences = 1;
    for (size_t s = 0; s < 16; ++s) {
      halves[b].tokens.push_back(both.tokens[s * 2 + b]);
      halves[b].targets.push_back(both.targets[s * 2 + b]);
    }
  }
  const double together = whole.step({both});
  const double apart = split.step(halves);
  const double tolerance = 64 * dtype_epsilon(DType::f64);
  EXPECT_NEAR(together, apart, tolerance * together);
  const auto* a = whole.parameters.flat_gradient().as<double>();
  const auto* b = split.parameters.flat_gradient().as<double>();
  double largest = 0;
  for (int64_t i = 0; i < whole.parameters.numel(); ++i)
    largest = std::max(largest, std::abs(a[i]));
  for (int64_t i = 0; i < whole.parameters.numel(); ++i)
    ASSERT_NEAR(a[i], b[i], tolerance * largest) << i;
}

// Two documents packed into one sequence, the second from a chunk boundary on, give the logits each
// has alone; two sequences with different cuts show that nothing is transposed.
TEST(PhdInvariants, PackedDocumentsEqualDocumentsAlone) {
  ModelConfig config = tiny_config();
  config.phd_copies = 3;
  TestModel model(config, kShape, DType::f64);
  MicroBatch packed = random_batch(16, 2, config.vocab_size, 11);
  MicroBatch alone = packed;
  const int64_t cuts[] = {4, 8};
  for (int64_t s = 0; s < 16; ++s)
    for (int64_t b = 0; b < 2; ++b)
      packed.position_ids.push_back(static_cast<int32_t>(s < cuts[b] ? s : s - cuts[b]));
  for (const int64_t cut : cuts)
    for (int64_t s = 0; s < 16; ++s)
      packed.document_start.push_back(static_cast<int32_t>(s < cut ? 0 : cut));
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t s = cuts[b]; s < 16; ++s)
      alone.tokens[static_cast<size_t>((s - cuts[b]) * 2 + b)] =
          packed.tokens[static_cast<size_t>(s * 2 + b)];
  for (int64_t b = 0; b < 2; ++b) {
    const auto row = [&](const std::vector<float>& all) {
      const auto width = static_cast<int64_t>(all.size() / 2);
      return std::vector<float>(all.begin() + b * width, all.begin() + (b + 1) * width);
    };
    const auto together = row(logits(model, packed, 15));
    const auto apart = row(logits(model, alone, 15 - cuts[b]));
    ASSERT_EQ(together.size(), 32U);
    for (size_t i = 0; i < together.size(); ++i)
      // f64 inside, rounded to f32 once on the way out.
      EXPECT_NEAR(together[i], apart[i], 4 * dtype_epsilon(DType::f32) * (1 + std::abs(apart[i])));
    EXPECT_NE(together, row(logits(model, random_batch(16, 2, config.vocab_size, 11), 15)));
  }
}

// Generation must read the row of the position that was asked for.
TEST(PhdInvariants, LogitsOfAPositionGiveTheLossOfItsTarget) {
  ModelConfig config = tiny_config();
  config.phd_copies = 2;
  TestModel model(config, {.positions = 16, .sequences = 1}, DType::f64);
  MicroBatch batch = random_batch(16, 1, config.vocab_size, 12);
  for (const int64_t position : {0, 7, 15}) {
    std::fill(batch.targets.begin(), batch.targets.end(), kIgnoreTarget);
    batch.targets[static_cast<size_t>(position)] = 3;
    const auto row = logits(model, batch, position);
    double sum = 0;
    for (int64_t v = 0; v < config.vocab_size; ++v) sum += std::exp(row[static_cast<size_t>(v)]);
    const double loss = std::log(sum) - row[3];
    EXPECT_NEAR(model.stage.evaluate(batch).cross_entropy, loss, 8 * dtype_epsilon(DType::f32) * 8);
  }
}

TEST(PhdInvariants, EvaluationEqualsTrainingLoss) {
  ModelConfig config = tiny_config();
  config.phd_copies = 2;
  TestModel model(config, kShape, DType::f64);
  const MicroBatch batch = random_batch(16, 2, config.vocab_size, 9);
  const double trained = model.step({batch});
  const LossSums sums = model.stage.evaluate(batch);
  const auto tokens = static_cast<double>(testing::count_targets({batch}));
  EXPECT_DOUBLE_EQ(trained, sums.cross_entropy / tokens);
}

// The arenas are taken at the planned size, so a step that fits proves the plan; a shorter
// sequence plans less.
TEST(PhdInvariants, PlannedMemoryHoldsAStep) {
  ModelConfig config = tiny_config();
  config.phd_copies = 2;
  TestModel model(config, kShape, DType::f32);
  const auto plan = model.stage.plan_memory(kShape, DType::f32, {});
  EXPECT_GT(plan.scratch_bytes, 0);
  EXPECT_NO_THROW(model.step({random_batch(16, 2, config.vocab_size, 10)}));
  const auto half = model.stage.plan_memory({.positions = 8, .sequences = 2}, DType::f32, {});
  EXPECT_LT(half.saved_bytes_per_slot.at(0), plan.saved_bytes_per_slot.at(0));
}

TEST(PhdInvariants, WrongBatchShapeIsNamed) {
  ModelConfig config = tiny_config();
  TestModel model(config, kShape, DType::f32);
  EXPECT_THROW(model.stage.evaluate(random_batch(8, 2, config.vocab_size, 1)), Error);
}

}  // namespace
}  // namespace phalanx
