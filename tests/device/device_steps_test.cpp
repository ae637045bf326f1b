// Steps of the trainer on the emulated GPU: what the host waits for, what memory is taken, and what
// recorded micro-batches change (nothing but the number of launches).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/model/sequence_loader.h"
#include "core/train/trainer.h"
#include "kernels/make_backend.h"
#include "tests/cuda_emulator/counters.h"
#include "tests/train/tiny_run.h"

namespace phalanx {
namespace {

using emulator::counters;

RunConfig device_run(int64_t layers, int64_t micro_batches) {
  RunConfig config = tiny_run();
  config.model.num_layers = layers;
  config.training.global_batch_size = micro_batches;
  config.training.run_dir = fresh_folder("device_steps");
  config.training.train_iters = 8;
  return config;
}

/// A run that does as many steps as it is asked for.
class Steps {
 public:
  explicit Steps(const RunConfig& config)
      : backend_(make_backend(Device::cuda)),
        groups_(make_single_process_groups(backend_.get())),
        trainer_(config, *backend_, groups_) {}

  StepMetrics step() {
    trainer_.step();
    return trainer_.last_metrics();
  }

 private:
  std::unique_ptr<Backend> backend_;
  ProcessGroups groups_;
  Trainer trainer_;
};

int64_t waits() {
  return counters().stream_synchronisations + counters().event_synchronisations +
         counters().device_synchronisations;
}

int64_t waits_of_a_step(const RunConfig& config) {
  Steps steps(config);
  steps.step();
  counters().reset();
  steps.step();
  return waits();
}

TEST(DeviceSteps, TheHostWaitsForTheLossesAndTheNormAlone) {
  EXPECT_LE(waits_of_a_step(device_run(1, 1)), 2);
  EXPECT_LE(waits_of_a_step(device_run(3, 4)), 2);
  RunConfig recomputed = device_run(2, 2);
  recomputed.parallel.recompute = {"layer"};
  EXPECT_LE(waits_of_a_step(recomputed), 2);
}

TEST(DeviceSteps, OneBlockOfMemoryIsTakenBeforeTheFirstStep) {
  RunConfig dense = device_run(2, 2);
  RunConfig bf16 = dense;
  bf16.training.precision = ComputePrecision::bf16;
  RunConfig recomputed = dense;
  recomputed.parallel.recompute = {"layer"};
  RunConfig sharded = dense;
  sharded.parallel.data_parallel_sharding_strategy = DataParallelSharding::optim_grads_params;
  RunConfig recorded = dense;
  recorded.training.cuda_graph = true;
  RunConfig measured = dense;
  measured.training.peak_tflops = 0;  // the timed products lie in the block too
  RunConfig wide = measured;
  wide.model.ffn_hidden_size = 256;
  RunConfig deep = measured;
  deep.training.micro_batch_size = 2;
  deep.training.precision = ComputePrecision::bf16;
  for (const RunConfig& config :
       {dense, bf16, recomputed, sharded, recorded, measured, wide, deep}) {
    counters().reset();
    Steps steps(config);
    EXPECT_EQ(counters().device_allocations, 1);
    steps.step();
    steps.step();
    EXPECT_EQ(counters().device_allocations, 1);
  }
}

std::vector<double> numbers_of_steps(const RunConfig& config, int64_t count) {
  Steps steps(config);
  std::vector<double> numbers;
  for (int64_t i = 0; i < count; ++i) {
    const StepMetrics metrics = steps.step();
    numbers.insert(numbers.end(), {metrics.loss, metrics.z_loss, metrics.gradient_norm});
  }
  return numbers;
}

TEST(DeviceSteps, RecordedMicroBatchesGiveTheSameBits) {
  for (const char* recompute : {"none", "layer"}) {
    RunConfig config = device_run(2, 3);
    config.parallel.recompute = {recompute};
    const std::vector<double> expected = numbers_of_steps(config, 4);
    config.training.cuda_graph = true;
    EXPECT_EQ(numbers_of_steps(config, 4), expected) << recompute;
  }
}

// The number of tokens with a loss is an argument of recorded ops.
TEST(DeviceSteps, RecordedMicroBatchesFollowChangesOfTheirNumbers) {
  RunConfig config = device_run(2, 3);
  config.data.eod_mask_loss = true;
  config.data.seq_length = 64;
  std::vector<int64_t> tokens;
  {
    Steps steps(config);
    for (int i = 0; i < 4; ++i) tokens.push_back(steps.step().loss_tokens);
  }
  ASSERT_NE(tokens[2], tokens[3]);  // of two steps that replay
  const std::vector<double> expected = numbers_of_steps(config, 4);
  config.training.cuda_graph = true;
  EXPECT_EQ(numbers_of_steps(config, 4), expected);
}

// The copy stream runs ahead of the ops' stream, on which fresh memory is filled with zeros.
TEST(DeviceSteps, TheFirstBatchIsNotOvertakenByTheZerosOfFreshMemory) {
  const auto backend = make_backend(Device::cuda);
  ProcessGroups groups = make_single_process_groups(backend.get());
  SequenceLoader loader(*backend, *groups.cp, {.positions = 16, .sequences = 1}, Tensor{});
  MicroBatch batch{.positions = 16, .sequences = 1, .tokens = {}, .targets = {}};
  batch.tokens.assign(16, 7);
  batch.targets = batch.tokens;
  loader.begin_step({&batch, 1}, SequenceLoader::DeviceState::idle);
  // Staging memory is used in turn: who wants it again waits for the copy that used it before.
  const std::vector<int32_t> other(16, 1);
  const auto block = backend->allocate(16 * dtype_bytes(DType::i32));
  const Tensor elsewhere{block.get(), {16}, DType::i32, Device::cuda};
  for (int i = 0; i < 16; ++i) backend->upload_early(elsewhere, other.data());
  ChunkState state{.arena = Arena("saved", nullptr, 0, Device::cuda)};
  loader.load(0, state);
  std::vector<int32_t> found(16);
  backend->download(found.data(), state.ids);
  EXPECT_EQ(found, batch.tokens);
}

TEST(DeviceSteps, ARecordedMicroBatchIsTwoLaunches) {
  RunConfig config = device_run(2, 3);
  const auto launches = [&](bool recorded) {
    config.training.cuda_graph = recorded;
    Steps steps(config);
    steps.step();
    counters().reset();
    steps.step();
    return std::pair(counters().kernel_launches.load(), counters().graph_launches.load());
  };
  const auto [plain, no_graphs] = launches(false);
  const auto [rest, graphs] = launches(true);
  EXPECT_EQ(no_graphs, 0);
  EXPECT_EQ(graphs, 2 * 3);
  EXPECT_GT(plain, 0);
  config.training.global_batch_size = 6;
  const auto [rest_of_more, more_graphs] = launches(true);
  EXPECT_EQ(more_graphs, 2 * 6);
}

}  // namespace
}  // namespace phalanx
