// Weights files: round trips, gathering of masters, and everything that must be refused.
#include "core/train/weights_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "core/train/trainer.h"
#include "data/hdf5_file.h"
#include "kernels/cpu/cpu_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/train/tiny_run.h"

namespace phalanx {
namespace {

const WeightsInfo kInfo{
    .config_ini = "seed = 1\n", .step = 7, .consumed_samples = 56, .tokenizer_hash = "abc"};

/// A model's parameters on one rank.
struct Model {
  explicit Model(const RunConfig& config, uint64_t seed = 1)
      : groups(make_single_process_groups()), stage(config.model, store, backend, groups) {
    store.allocate(backend, compute_dtype(config.training.precision));
    gradients = std::make_unique<GradientBuffer>(store, backend, groups, GradientBuffer::Options{});
    optimizer = std::make_unique<DistributedOptimizer>(store, *gradients, backend, groups,
                                                       config.optimizer);
    optimizer->initialise(seed);
  }
  WeightsSource source() { return {store, optimizer->shards(), backend, *groups.world}; }
  template <class T = float>
  std::vector<T> values() const {
    const T* data = store.flat_value().as<T>();
    return {data, data + store.numel()};
  }

  CpuBackend backend{1};
  ProcessGroups groups;
  ParameterStore store;
  PhdStage stage;
  std::unique_ptr<GradientBuffer> gradients;
  std::unique_ptr<DistributedOptimizer> optimizer;
};

std::string file_in(const std::string& name) {
  return fresh_folder(name) + "/weights.h5";
}

template <class Call>
std::string usage_error_of(Call&& call) {
  try {
    call();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no UsageError";
}

TEST(WeightsFile, RoundTripIsExactAndKeepsTheAttributes) {
  const std::string path = file_in("round_trip");
  Model written(tiny_run(), 1);
  save_weights(path, kInfo, written.source());
  Model read(tiny_run(), 2);
  ASSERT_NE(read.values(), written.values());
  const WeightsInfo info = load_weights(path, "abc", read.store, read.backend, *read.groups.world);
  EXPECT_EQ(read.values(), written.values());
  EXPECT_EQ(info.config_ini, kInfo.config_ini);
  EXPECT_EQ(info.step, 7);
  EXPECT_EQ(info.consumed_samples, 56);
  EXPECT_EQ(info.tokenizer_hash, "abc");
}

TEST(WeightsFile, TensorsHaveTheirNamesAndGlobalShapes) {
  const std::string path = file_in("names");
  Model model(tiny_run());
  save_weights(path, kInfo, model.source());
  const Hdf5File file = Hdf5File::open(path);
  EXPECT_EQ(static_cast<int64_t>(file.datasets().size()), model.store.size());
  EXPECT_TRUE(file.shape("layers.00.attention.q.weight") == (Shape{32, 32}));
  EXPECT_EQ(file.dtype("layers.00.attention.q.weight"), DType::f32);
}

TEST(WeightsFile, Bfloat16RunsWriteTheirSingleMastersFromAllRanks) {
  const std::string path = file_in("masters");
  RunConfig config = tiny_run();
  config.training.precision = ComputePrecision::bf16;
  run_thread_ranks(3, [&](ThreadRank& rank) {
    const DeviceMesh mesh(config.parallel, rank.size());
    ProcessGroups groups = rank.process_groups(mesh);
    CpuBackend backend(1);
    ParameterStore store;
    PhdStage stage(config.model, store, backend, groups);
    store.allocate(backend, DType::bf16);
    // Small buckets, so that several shards of a rank lie in one parameter and rows are cut.
    GradientBuffer gradients(store, backend, groups, {.bucket_size = 500});
    DistributedOptimizer optimizer(store, gradients, backend, groups, config.optimizer);
    optimizer.initialise(1);
    save_weights(path, kInfo, {store, optimizer.shards(), backend, *groups.world});
  });
  // The same seed in fp32 draws the same masters.
  const Model expected(tiny_run(), 1);
  Model read(tiny_run(), 2);
  load_weights(path, "", read.store, read.backend, *read.groups.world);
  EXPECT_EQ(read.values(), expected.values());
  // And a bf16 model gets them rounded.
  Model rounded(config, 2);
  load_weights(path, "", rounded.store, rounded.backend, *rounded.groups.world);
  EXPECT_EQ(static_cast<float>(rounded.values<BFloat16>()[5]),
            static_cast<float>(BFloat16(expected.values()[5])));
}

TEST(WeightsFile, AnotherModelIsRefusedWithEveryDifference) {
  const std::string path = file_in("other_model");
  Model written(tiny_run());
  save_weights(path, kInfo, written.source());
  RunConfig config = tiny_run();
  config.model.num_layers = 1;
  config.model.ffn_hidden_size = 64;
  config.model.untie_embeddings_and_output_weights = true;
  Model other(config);
  const auto before = other.values();
  const std::string text = usage_error_of(
      [&] { load_weights(path, "abc", other.store, other.backend, *other.groups.world); });
  EXPECT_THAT(text, testing::AllOf(testing::HasSubstr("missing: head.weight [384, 32]"),
                                   testing::HasSubstr("unexpected: layers.01.attention.q.weight"),
                                   testing::HasSubstr("layers.00.mlp.gate.weight is [48, 32]"),
                                   testing::HasSubstr("expected [64, 32]")));
  EXPECT_EQ(other.values(), before);  // nothing was read
}

TEST(WeightsFile, AnotherTokenizerIsRefused) {
  const std::string path = file_in("tokenizer");
  Model model(tiny_run());
  save_weights(path, kInfo, model.source());
  EXPECT_THAT(usage_error_of([&] {
                load_weights(path, "xyz", model.store, model.backend, *model.groups.world);
              }),
              testing::HasSubstr("another tokenizer"));
}

TEST(WeightsFile, FilesThatAreNoWeightsAreRefused) {
  Model model(tiny_run());
  const auto load = [&](const std::string& path) {
    load_weights(path, "", model.store, model.backend, *model.groups.world);
  };
  const std::string folder = fresh_folder("bad");
  EXPECT_THROW(load(folder + "/absent.h5"), Error);
  std::ofstream(folder + "/text.h5") << "this is no HDF5 file";
  EXPECT_THROW(load(folder + "/text.h5"), Error);
  {
    Hdf5File other = Hdf5File::create(folder + "/other.h5");
    other.publish();
  }
  EXPECT_THAT(usage_error_of([&] { load(folder + "/other.h5"); }),
              testing::HasSubstr("not weights of this program"));
  const std::string path = folder + "/cut.h5";
  save_weights(path, kInfo, model.source());
  std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
  EXPECT_THROW(load(path), Error);
}

TEST(WeightsFile, NothingIsLeftBehindWhenWritingFails) {
  const std::string folder = fresh_folder("unfinished");
  {
    Hdf5File file = Hdf5File::create(folder + "/weights.h5");
    file.set_attribute("/", "format", "x");
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder));
}

}  // namespace
}  // namespace phalanx
