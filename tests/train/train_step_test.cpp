// The step: counting, skipping, allocation, and N ranks equal one rank.
#include "core/train/train_step.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/train/stop_flag.h"
#include "core/train/trainer.h"
#include "kernels/cpu/cpu_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/allocation_count.h"
#include "tests/train/tiny_run.h"

namespace phalanx {
namespace {

TEST(CountLossTokens, IgnoredTargetsDoNotCount) {
  GlobalBatch batch;
  batch.micro_batches.resize(2);
  batch.micro_batches[0].targets = {1, kIgnoreTarget, 3};
  batch.micro_batches[1].targets = {kIgnoreTarget, kIgnoreTarget, 0};
  const ProcessGroups groups = make_single_process_groups();
  EXPECT_EQ(count_loss_tokens(batch, *groups.dp_cp), 3);
}

TEST(CountLossTokens, RanksWithUnequalTargetsSumUp) {
  run_thread_ranks(4, [](ThreadRank& rank) {
    GlobalBatch batch;
    batch.micro_batches.resize(1);
    // Rank r has r targets, rank 0 none.
    batch.micro_batches[0].targets.assign(5, kIgnoreTarget);
    for (int i = 0; i < rank.rank(); ++i)
      batch.micro_batches[0].targets[static_cast<size_t>(i)] = 7;
    const auto group = rank.world_group();
    EXPECT_EQ(count_loss_tokens(batch, *group), 0 + 1 + 2 + 3);
  });
}

RunConfig run_in(const std::string& name) {
  RunConfig config = tiny_run();
  config.training.run_dir = testing::TempDir() + "/phalanx_train_" + name;
  return config;
}

std::vector<StepMetrics> run_steps(Trainer& trainer, int64_t count) {
  std::vector<StepMetrics> list;
  for (int64_t i = 0; i < count; ++i) {
    trainer.step();
    list.push_back(trainer.last_metrics());
  }
  return list;
}

std::vector<StepMetrics> run_on_ranks(const RunConfig& config, int num_ranks) {
  std::vector<StepMetrics> first;
  run_thread_ranks(num_ranks, [&](ThreadRank& rank) {
    const DeviceMesh mesh(config.parallel, rank.size());
    ProcessGroups groups = rank.process_groups(mesh);
    CpuBackend backend(1);
    Trainer trainer(config, backend, groups);
    const auto list = run_steps(trainer, config.training.train_iters);
    if (rank.rank() == 0) first = list;
  });
  return first;
}

/// c * eps * sqrt(terms) * scale: each loss is a sum over tokens of softmax sums over the
/// vocabulary; c = 16 covers ten steps of updates that carry the rounding on.
double tolerance(const RunConfig& config, double scale) {
  const DType dtype = compute_dtype(config.training.precision);
  const double terms =
      static_cast<double>(config.training.global_batch_size * config.data.seq_length *
                          config.model.padded_vocab_size());
  return 16 * dtype_epsilon(dtype) * std::sqrt(terms) * scale;
}

void expect_same_run(const RunConfig& config, int num_ranks) {
  const auto alone = run_on_ranks(config, 1);
  const auto together = run_on_ranks(config, num_ranks);
  ASSERT_EQ(alone.size(), together.size());
  for (size_t i = 0; i < alone.size(); ++i) {
    EXPECT_EQ(alone[i].loss_tokens, together[i].loss_tokens);
    EXPECT_NEAR(alone[i].loss, together[i].loss, tolerance(config, alone[i].loss)) << "step " << i;
    EXPECT_NEAR(alone[i].z_loss, together[i].z_loss, tolerance(config, 2 * alone[i].z_loss));
    EXPECT_NEAR(alone[i].gradient_norm, together[i].gradient_norm,
                tolerance(config, 10 * alone[i].gradient_norm))
        << "step " << i;
  }
  EXPECT_LT(alone.back().loss, 0.9 * alone.front().loss);  // it did learn
}

TEST(DataParallel, TwoRanksEqualOne) {
  RunConfig config = run_in("dp2");
  config.training.precision = ComputePrecision::fp64;
  expect_same_run(config, 2);
}

TEST(DataParallel, FourRanksEqualOneWithManyBuckets) {
  RunConfig config = run_in("dp4");
  config.training.precision = ComputePrecision::fp64;
  config.parallel.ddp_bucket_size = 1000;
  expect_same_run(config, 4);
}

TEST(DataParallel, TwoRanksEqualOneInSinglePrecisionWithMaskedTokens) {
  RunConfig config = run_in("dp2_fp32");
  config.data.eod_mask_loss = true;
  config.data.reset_attention_mask = true;
  config.data.reset_position_ids = true;
  expect_same_run(config, 2);
}

TEST(DataParallel, MicroBatchesOfTwoEqualOnesOfOne) {
  RunConfig config = run_in("mbs");
  config.training.precision = ComputePrecision::fp64;
  const auto single = run_on_ranks(config, 1);
  config.training.micro_batch_size = 2;
  const auto twofold = run_on_ranks(config, 2);
  for (size_t i = 0; i < single.size(); ++i)
    EXPECT_NEAR(single[i].loss, twofold[i].loss, tolerance(config, single[i].loss));
}

/// One rank, everything built.
struct SingleRun {
  explicit SingleRun(const RunConfig& config)
      : groups(make_single_process_groups()), backend(1), trainer(config, backend, groups) {}
  ProcessGroups groups;
  CpuBackend backend;
  Trainer trainer;
};

std::vector<float> weights_of(const Trainer& trainer) {
  const Tensor flat = trainer.parameters().flat_value();
  const float* data = flat.as<float>();
  return {data, data + flat.numel()};
}

TEST(TrainStep, DoesNotAllocateAfterTheFirst) {
  SingleRun run(run_in("allocations"));
  run_steps(run.trainer, 1);
  const int64_t before = count_allocations_of_this_thread();
  for (int i = 0; i < 5; ++i) run.trainer.step();
  EXPECT_EQ(count_allocations_of_this_thread(), before);
  ::operator delete(::operator new(1));  // the counter does count; a new expression may be elided
  EXPECT_EQ(count_allocations_of_this_thread(), before + 1);
}

TEST(TrainStep, AnInfiniteWeightSkipsTheStepAndLeavesTheRest) {
  SingleRun run(run_in("infinite"));
  run_steps(run.trainer, 1);
  const Tensor flat = run.trainer.parameters().flat_value();
  float& weight = flat.as<float>()[flat.numel() - 1];  // of the final norm: every token reads it
  const float good = weight;
  weight = std::numeric_limits<float>::infinity();
  const auto before = weights_of(run.trainer);
  run.trainer.step();
  EXPECT_TRUE(run.trainer.last_metrics().skipped);
  EXPECT_EQ(run.trainer.counters().skipped_steps, 1);
  EXPECT_EQ(run.trainer.counters().step, 2);
  EXPECT_EQ(run.trainer.counters().consumed_samples, 16);
  EXPECT_THAT(weights_of(run.trainer), testing::ContainerEq(before));

  weight = good;  // the next step goes on as if nothing had been
  run.trainer.step();
  EXPECT_FALSE(run.trainer.last_metrics().skipped);
  EXPECT_EQ(run.trainer.counters().skipped_in_row, 0);
  EXPECT_EQ(run.trainer.counters().skipped_steps, 1);
  // Two updates so far, so the warm-up of two has reached its second step, not its third.
  EXPECT_DOUBLE_EQ(run.trainer.last_metrics().learning_rate, 0.5e-2);
}

TEST(TrainStep, ADivergedRunStopsWithStepLossAndNorm) {
  RunConfig config = run_in("diverged");
  config.optimizer.lr = 1e38;
  config.optimizer.lr_warmup_iters = 0;
  config.training.max_skipped_in_row = 3;
  SingleRun run(config);
  run.trainer.step();
  try {
    for (int i = 0; i < 9; ++i) run.trainer.step();
    FAIL() << "the run went on";
  } catch (const DivergedError& error) {
    EXPECT_THAT(
        error.what(),
        testing::AllOf(testing::HasSubstr("step 4"), testing::HasSubstr("for 3 steps in a row"),
                       testing::HasSubstr("loss"), testing::HasSubstr("gradient norm"),
                       testing::HasSubstr("--lr")));
  }
  EXPECT_EQ(run.trainer.counters().step, 4);
}

TEST(TrainStep, OneBadRankSkipsOnAll) {
  RunConfig config = run_in("bad_rank");
  run_thread_ranks(2, [&](ThreadRank& rank) {
    const DeviceMesh mesh(config.parallel, rank.size());
    ProcessGroups groups = rank.process_groups(mesh);
    CpuBackend backend(1);
    Trainer trainer(config, backend, groups);
    const Tensor flat = trainer.parameters().flat_value();
    if (rank.rank() == 1) flat.as<float>()[flat.numel() - 1] = std::nanf("");
    trainer.step();
    EXPECT_TRUE(trainer.last_metrics().skipped);
    EXPECT_EQ(trainer.counters().skipped_steps, 1);
  });
}

TEST(TrainStep, AStopIsSeenAtTheStepBoundary) {
  RunConfig config = run_in("stop");
  stop_requested() = true;
  SingleRun run(config);
  EXPECT_EQ(run.trainer.agreed_stop(), StopReason::signal);
  stop_requested() = false;
  EXPECT_EQ(run.trainer.agreed_stop(), StopReason::none);
}

}  // namespace
}  // namespace phalanx
