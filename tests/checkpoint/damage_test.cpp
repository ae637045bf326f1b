// Damage to every file of a checkpoint: `verify` and loading find it, name it, and do not crash.
#include <fmt/format.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "core/checkpoint/checkpoint_loader.h"
#include "core/checkpoint/checkpoint_reader.h"
#include "core/checkpoint/verify.h"
#include "core/train/layout_run.h"
#include "core/train/run_setup.h"
#include "core/train/run_training.h"
#include "kernels/cpu/cpu_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/checkpoint/checkpoint_fixture.h"
#include "tests/checkpoint/damage.h"
#include "tests/train/tiny_run.h"

namespace phalanx::test {
namespace {

using testing::HasSubstr;

std::string verify_text(const std::string& folder) {
  return fmt::format("{}", fmt::join(verify_checkpoint(folder, {}).damages, "\n"));
}

std::string open_text(const std::string& folder, ProcessGroup& world) {
  IoWatchdog watchdog("rank", {}, {});
  try {
    open_checkpoint(folder, world, watchdog);
  } catch (const CheckpointDamage& damage) {
    return damage.what();
  }
  return "";
}

/// What CheckpointReader, which shows, compares and rewrites checkpoints, finds.
std::string reader_text(const std::string& folder) {
  try {
    CheckpointReader reader(folder);
    std::vector<uint8_t> values;
    for (const SavedTensor& tensor : reader.manifest().tensors)
      for (int part = 0; part < kNumParts; ++part) {
        values.resize(static_cast<size_t>(tensor.shape.numel() * 8));
        reader.read(tensor, part, whole_range(tensor), values.data());
      }
    reader.check_what_was_read();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

void expect_names(const std::string& text, const std::vector<std::string>& names,
                  const std::string& what) {
  for (const std::string& name : names) EXPECT_THAT(text, HasSubstr(name)) << what;
}

/// A very small checkpoint, of which every byte can be tried.
class SmallDamage : public testing::Test {
 protected:
  SmallDamage()
      : manifest_(write_fixture(path_, {.tensors = {{"head.weight", {16, 8}},
                                                    {"k.weight", {16, 16}},
                                                    {"norm.weight", {8}},
                                                    {"q.weight", {16, 16}}},
                                        .row_cuts = 2})),
        files_(read_files(path_)) {}

  /// Applies, looks, undoes.
  void expect_found(const Damage& damage) {
    damage.apply(path_);
    const Expected expected = expected_names(damage, files_, manifest_);
    expect_names(verify_text(path_), expected.verify, damage.what + " (verify)");
    // Without a model only what surrounds the tensors is read.
    const std::string text = open_text(path_, *groups_.world);
    if (expected.load.size() == 1) expect_names(text, expected.load, damage.what + " (open)");
    const bool reader_reads = !damage.changes.contains("index.h5");
    if (expected.load.size() > 1 && reader_reads)
      expect_names(reader_text(path_), expected.load, damage.what + " (reader)");
    damage.undo(path_, files_);
    ++num_damages_;
  }
  void expect_found(const std::vector<Damage>& list) {
    for (const Damage& damage : list) expect_found(damage);
  }
  void expect_whole() const {
    EXPECT_EQ(verify_text(path_), "");
    EXPECT_EQ(open_text(path_, *groups_.world), "");
    EXPECT_EQ(reader_text(path_), "");
    RecordProperty("damages", num_damages_);
  }

  ScratchFolder root_;
  std::string path_ = root_ / "iter_0000100";
  Manifest manifest_;
  Files files_;
  ProcessGroups groups_ = make_single_process_groups();
  int num_damages_ = 0;
};

TEST_F(SmallDamage, AnyByteOfCommittedAndManifest) {
  DamageMaker maker(files_, 1);
  for (const char* file : {"COMMITTED", "manifest.json"})
    for (int64_t byte = 0; byte < std::ssize(files_.at(file)); ++byte)
      expect_found(maker.flip(file, byte));
  expect_whole();
}

TEST_F(SmallDamage, EveryKindInEveryFile) {
  DamageMaker maker(files_, 2);
  for (const auto& [file, content] : files_) expect_found(maker.all(file, 64));
  expect_whole();
}

TEST_F(SmallDamage, EveryPartOfAShardsDescription) {
  DamageMaker maker(files_, 3);
  for (const char* file : {"shard_00000.h5", "index.h5"}) {
    const std::string& content = files_.at(file);
    // Whatever HDF5 wrote: superblock, headers, names, heaps, trees; the rest is of zeros and data.
    for (int64_t byte = 0; byte < std::ssize(content); byte += byte < 512 ? 1 : 61)
      expect_found(maker.flip(file, byte));
  }
  expect_whole();
}

TEST_F(SmallDamage, FilesThatBelongElsewhere) {
  const std::string other = root_ / "other";
  write_fixture(other, {.tensors = manifest_.tensors, .row_cuts = 2, .step = 101, .seed = 2});
  const Files foreign = read_files(other);
  for (const auto& [file, content] : files_) {
    ASSERT_TRUE(content != foreign.at(file)) << file;  // short, because it is binary
    expect_found({file + ": of another checkpoint", {{file, {.content = foreign.at(file)}}}});
  }
  DamageMaker maker(files_, 4);
  expect_found(maker.swap("shard_00000.h5", "shard_00001.h5"));
  expect_found(maker.swap("index.h5", "shard_00001.h5"));
  expect_whole();
}

TEST_F(SmallDamage, TensorsThatChangedPlaces) {
  for (const SavedShard& shard : manifest_.shards)
    for (const SavedBlock& a : shard.blocks)
      for (const SavedBlock& b : shard.blocks) {
        if (a.numel() != b.numel()) continue;
        std::string content = files_.at(shard.file);
        const auto bytes = static_cast<size_t>(a.numel() * dtype_bytes(manifest_.dtype));
        const auto from = static_cast<size_t>(a.place[0]);
        const auto to = static_cast<size_t>(b.place[&a == &b ? 1 : 0]);
        const std::string kept = content.substr(to, bytes);
        content.replace(to, bytes, content, from, bytes);
        content.replace(from, bytes, kept);
        expect_found({shard.file + ": " + a.tensor + " and " + b.tensor + " swapped",
                      {{shard.file, {.content = content}}}});
      }
  EXPECT_GT(num_damages_, 8);
  expect_whole();
}

/// A run on two ranks of tensor parallelism with a checkpoint at iteration 2.
class TrainedDamage : public testing::Test {
 protected:
  struct Sample {
    Sample() {
      config.checkpoint.save_interval = 2;
      config.training.train_iters = 3;
      config.training.run_dir = root / "run";
      config.parallel.tensor_model_parallel_size = 2;
      run_thread_ranks(2, [&](ThreadRank& rank) {
        const DeviceMesh mesh(config.parallel, 2);
        ProcessGroups groups = rank.process_groups(mesh);
        CpuBackend backend(1);
        run_training(config, "seed = 1234\n", backend, groups, mesh);
      });
      files = read_files(path);
      manifest = read_checkpoint_manifest(path);
    }
    ScratchFolder root;
    RunConfig config = tiny_run();
    std::string path = root / "run/checkpoints/iter_0000002";
    Files files;
    Manifest manifest;
  };
  static void SetUpTestSuite() { sample_ = new Sample; }
  static void TearDownTestSuite() { delete sample_; }

  /// Opens and loads the damaged checkpoint for every damage, on every rank of the mesh.
  static void expect_load_fails(const std::vector<Damage>& damages, const ParallelConfig& parallel,
                                int num_ranks);
  static std::vector<Damage> damages(uint64_t seed, int count) {
    std::vector<Damage> list;
    DamageMaker maker(sample_->files, seed);
    for (const auto& [file, content] : sample_->files) {
      if (file == "next_step.json") continue;  // resuming reads that
      const int times = file.starts_with("shard") ? 4 : 1;
      for (Damage& damage : maker.all(file, times * count)) list.push_back(std::move(damage));
    }
    list.push_back(maker.swap("shard_00000.h5", "shard_00001.h5"));
    return list;
  }

  static Sample* sample_;
};
TrainedDamage::Sample* TrainedDamage::sample_ = nullptr;

void TrainedDamage::expect_load_fails(const std::vector<Damage>& damages,
                                      const ParallelConfig& parallel, int num_ranks) {
  const std::string path = sample_->root / fmt::format("copy_{}", num_ranks);
  std::filesystem::copy(sample_->path, path);
  run_thread_ranks(num_ranks, [&](ThreadRank& rank) {
    const DeviceMesh mesh(parallel, num_ranks);
    ProcessGroups groups = rank.process_groups(mesh);
    CpuBackend backend(1);
    const RunConfig config = make_run_setup(sample_->config, groups.dp->size()).config;
    const LayoutCase layout{.model = config.model,
                            .optimizer = config.optimizer,
                            .shape = {config.data.seq_length, config.training.micro_batch_size},
                            .num_micro_batches = 8,
                            .dtype = DType::f32};
    LayoutRun run(layout, parallel, backend, groups);
    IoWatchdog watchdog("rank", {}, {});
    const auto load = [&] {
      const Manifest manifest = open_checkpoint(path, *groups.world, watchdog);
      load_checkpoint(path, manifest,
                      {run.store(), run.optimizer(), run.gradients(), backend, *groups.world}, {},
                      watchdog);
    };
    for (const Damage& damage : damages) {
      if (rank.rank() == 0) damage.apply(path);
      groups.world->barrier();
      std::string found = "nothing";
      try {
        load();
      } catch (const CheckpointDamage& problem) {
        found = problem.what();
      }
      expect_names(found, expected_names(damage, sample_->files, sample_->manifest).load,
                   fmt::format("{} (rank {})", damage.what, rank.rank()));
      groups.world->barrier();
      if (rank.rank() == 0) damage.undo(path, sample_->files);
      groups.world->barrier();
    }
    EXPECT_NO_THROW(load());
  });
}

TEST_F(TrainedDamage, VerifyNamesFileAndTensor) {
  ASSERT_EQ(verify_text(sample_->path), "");
  ASSERT_TRUE(sample_->files.contains("next_step.json"));
  DamageMaker maker(sample_->files, 5);
  std::vector<Damage> list = damages(6, 16);
  for (Damage& damage : maker.all("next_step.json", 64)) list.push_back(std::move(damage));
  list.erase(std::remove_if(list.begin(), list.end(),
                            [](const Damage& d) { return d.what == "next_step.json: deleted"; }),
             list.end());
  for (const Damage& damage : list) {
    damage.apply(sample_->path);
    expect_names(verify_text(sample_->path),
                 expected_names(damage, sample_->files, sample_->manifest).verify, damage.what);
    damage.undo(sample_->path, sample_->files);
  }
  EXPECT_EQ(verify_text(sample_->path), "");
}

TEST_F(TrainedDamage, OneRankLoadsNoneOfThem) {
  expect_load_fails(damages(7, 16), {}, 1);
}

TEST_F(TrainedDamage, TwoRanksOfAnotherMeshLoadNoneOfThem) {
  ParallelConfig pipeline;
  pipeline.pipeline_model_parallel_size = 2;
  expect_load_fails(damages(8, 16), pipeline, 2);
}

}  // namespace
}  // namespace phalanx::test
