// Statistics, difference, resharding, export and listing of checkpoints.
#include <fmt/format.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <numeric>

#include "core/checkpoint/checked_json.h"
#include "core/checkpoint/difference.h"
#include "core/checkpoint/listing.h"
#include "core/checkpoint/rewrite.h"
#include "core/checkpoint/tensor_statistics.h"
#include "core/checkpoint/verify.h"
#include "core/checkpoint/weights_info.h"
#include "data/file_io.h"
#include "tests/checkpoint/checkpoint_fixture.h"
#include "tests/data/data_helpers.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::vector<TensorStatistics> statistics(const std::string& path, int threads = 2) {
  CheckpointReader reader(path);
  return tensor_statistics(reader, threads);
}

CheckpointDifference difference(const std::string& first, const std::string& second) {
  CheckpointReader a(first);
  CheckpointReader b(second);
  return compare_checkpoints(a, b, 2);
}

std::vector<std::string> damages(const std::string& path) {
  return verify_checkpoint(path, {}).damages;
}

void expect_equal_tensors(const std::string& first, const std::string& second) {
  for (const SavedTensor& tensor : read_checkpoint_manifest(first).tensors)
    for (int part = 0; part < kNumParts; ++part)
      EXPECT_EQ(read_fixture(first, tensor.name, part), read_fixture(second, tensor.name, part))
          << tensor.name;
}

/// Spoils one element of the first block of a checkpoint.
void spoil(const std::string& path) {
  const SavedShard shard = read_checkpoint_manifest(path).shards.front();
  flip_bit(path + "/" + shard.file, shard.blocks.front().place[0], 2);
}

TEST(Statistics, CountWhatIsNotFiniteAndLeaveItOutOfTheSums) {
  const TemporaryFolder folder;
  const auto value = [](const std::string& name, int64_t index) {
    if (name == "optimizer.exp_avg/v" && index % 5 == 1) return kNan;
    if (name == "optimizer.exp_avg/v" && index == 7) return -kInfinity;
    return name == "v" ? 0.5 : static_cast<double>(index) - 10;
  };
  for (const DType dtype : {DType::f32, DType::f64}) {
    const std::string path = folder / dtype_name(dtype);
    write_fixture(path, {.tensors = {{"v", {20}}}, .row_cuts = 3, .dtype = dtype, .value = value});
    const auto all = statistics(path);
    ASSERT_THAT(all, SizeIs(3));
    EXPECT_EQ(all[0].name, "v");
    EXPECT_EQ(all[0].mean, 0.5);
    EXPECT_EQ(all[0].rms, 0.5);
    EXPECT_EQ(all[0].max_abs, 0.5);
    EXPECT_EQ(all[0].num_nan, 0);
    EXPECT_EQ(all[1].name, "optimizer.exp_avg/v");
    EXPECT_EQ(all[1].num_nan, 4);
    EXPECT_EQ(all[1].num_infinite, 1);
    // Of -10 .. 9 without -9, -4, 1, 6 and -3: sum -1, squares 670 - 143, 15 elements.
    EXPECT_DOUBLE_EQ(all[1].mean, -1.0 / 15);
    EXPECT_DOUBLE_EQ(all[1].rms, std::sqrt(527.0 / 15));
    EXPECT_EQ(all[1].max_abs, 10);
    EXPECT_EQ(all[2].num_nan, 0);
  }
}

TEST(Statistics, DoNotDependOnTheCut) {
  const TemporaryFolder folder;
  write_fixture(folder / "a", {});
  write_fixture(folder / "b", {.row_cuts = 3, .column_cuts = 4, .num_shards = 5});
  const auto a = statistics(folder / "a", 1);
  const auto b = statistics(folder / "b", 3);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].name, b[i].name);
    EXPECT_EQ(a[i].mean, b[i].mean);
    EXPECT_EQ(a[i].rms, b[i].rms);
  }
}

TEST(Statistics, OfADamagedCheckpointAreRefused) {
  const TemporaryFolder folder;
  write_fixture(folder / "a", {});
  spoil(folder / "a");
  EXPECT_THAT(message_of([&] { statistics(folder / "a"); }),
              HasSubstr("shard_00000.h5: embedding.weight, rows 0 to 96, columns 0 to 64: check"));
}

TEST(Difference, OfOneStateInDifferentCutsIsNone) {
  const TemporaryFolder folder;
  write_fixture(folder / "a", {.row_cuts = 2});
  write_fixture(folder / "b", {.row_cuts = 3, .column_cuts = 4, .num_shards = 3});
  const CheckpointDifference found = difference(folder / "a", folder / "b");
  EXPECT_TRUE(found.same());
  EXPECT_EQ(found.num_equal, 12);
  EXPECT_EQ(found.num_equal_by_checksum, 12);
}

TEST(Difference, IsMeasuredAcrossCutsToTheElement) {
  const TemporaryFolder folder;
  const std::string changed = "optimizer.exp_avg/embedding.weight";
  const auto value = [&](double step) {
    return [=](const std::string& name, int64_t index) {
      return (name == changed && index % 64 == 40 && index < 640 ? step : 0.0) + 2;
    };
  };
  write_fixture(folder / "a", {.row_cuts = 2, .column_cuts = 2, .value = value(0)});
  write_fixture(folder / "b", {.row_cuts = 3, .num_shards = 3, .value = value(-0.5)});
  const CheckpointDifference found = difference(folder / "a", folder / "b");
  EXPECT_FALSE(found.same());
  ASSERT_THAT(found.tensors, SizeIs(1));
  EXPECT_EQ(found.tensors[0].name, changed);
  EXPECT_EQ(found.tensors[0].num_elements, 96 * 64);
  EXPECT_EQ(found.tensors[0].num_differing, 10);
  EXPECT_EQ(found.tensors[0].max_abs, 0.5);
  EXPECT_DOUBLE_EQ(found.tensors[0].relative_rms, std::sqrt(10 * 0.25 / (96 * 64 * 4.0)));
  EXPECT_EQ(found.num_equal, 11);
}

TEST(Difference, SeesSignsOfZeroAndNans) {
  const TemporaryFolder folder;
  const auto values = [](std::vector<double> list) {
    return [list](const std::string&, int64_t index) { return list[static_cast<size_t>(index)]; };
  };
  const std::vector<SavedTensor> tensors{{"v", {4}}};
  write_fixture(folder / "a", {.tensors = tensors, .value = values({0, kNan, kInfinity, 1})});
  write_fixture(folder / "b", {.tensors = tensors, .value = values({-0.0, kNan, kInfinity, 1})});
  write_fixture(folder / "c", {.tensors = tensors, .value = values({0, 3, kInfinity, 1})});
  const auto signs = difference(folder / "a", folder / "b");
  ASSERT_THAT(signs.tensors, SizeIs(3));
  EXPECT_EQ(signs.tensors[0].num_differing, 1);
  EXPECT_EQ(signs.tensors[0].max_abs, 0);
  const auto nans = difference(folder / "a", folder / "c");
  EXPECT_EQ(nans.tensors[0].num_differing, 1);
  EXPECT_TRUE(std::isnan(nans.tensors[0].max_abs));
}

TEST(Difference, NamesScalarsAndTensorsThatDoNotMatch) {
  const TemporaryFolder folder;
  write_fixture(folder / "a", {.tensors = {{"a", {4}}, {"b", {2, 3}}, {"c", {4}}}});
  write_fixture(folder / "b", {.tensors = {{"b", {3, 2}}, {"c", {4}}, {"d", {4}}},
                               .dtype = DType::f64,
                               .step = 200,
                               .value = [](const std::string&, int64_t) { return 0.1; }});
  write_fixture(folder / "c", {.tensors = {{"c", {4}}},
                               .value = [](const std::string&, int64_t) { return 0.5; }});
  write_fixture(folder / "d", {.tensors = {{"c", {4}}},
                               .dtype = DType::f64,
                               .value = [](const std::string&, int64_t) { return 0.5; }});
  const auto found = difference(folder / "a", folder / "b");
  EXPECT_THAT(found.scalars, ElementsAre("step: 100 | 200", "consumed samples: 800 | 1600",
                                         "consumed tokens: 12800 | 25600",
                                         "optimizer updates: 100 | 200", "dtype: f32 | f64"));
  EXPECT_THAT(found.only_first, ElementsAre("a"));
  EXPECT_THAT(found.only_second, ElementsAre("d"));
  EXPECT_THAT(found.shapes, ElementsAre("b: [2, 3] | [3, 2]"));
  EXPECT_THAT(found.tensors, SizeIs(3));  // the parts of c
  const auto wider = difference(folder / "c", folder / "d");
  EXPECT_THAT(wider.tensors, IsEmpty());  // the same values in another dtype
  EXPECT_THAT(wider.scalars, ElementsAre("dtype: f32 | f64"));
}

TEST(Difference, OfADamagedCheckpointIsRefused) {
  const TemporaryFolder folder;
  write_fixture(folder / "a", {.seed = 1});
  write_fixture(folder / "b", {.row_cuts = 2, .seed = 2});
  spoil(folder / "b");
  EXPECT_THAT(message_of([&] { difference(folder / "a", folder / "b"); }),
              HasSubstr("/b/shard_00000.h5: embedding.weight"));
}

TEST(Reshard, ToOneToThreeToTwoIsBitEqual) {
  const TemporaryFolder folder;
  for (const DType dtype : {DType::f32, DType::f64}) {
    const std::string name = std::string("start_") + dtype_name(dtype);
    write_fixture(folder / name,
                  {.row_cuts = 3, .column_cuts = 4, .num_shards = 4, .dtype = dtype});
    write_file(folder / name + "/next_step.json", with_checksum("{\n \"iteration\": 101\n}\n"));
    std::string before = name;
    for (const int64_t num_shards : {1, 3, 2}) {
      const std::string after = fmt::format("{}_{}", name, num_shards);
      reshard_checkpoint(folder / before, folder / after, num_shards);
      EXPECT_THAT(damages(folder / after), IsEmpty());
      EXPECT_THAT(verify_checkpoint(folder / after, {}).notes, IsEmpty());
      expect_equal_tensors(folder / name, folder / after);
      EXPECT_THAT(read_checkpoint_manifest(folder / after).shards, SizeIs(num_shards));
      EXPECT_EQ(read_file(folder / after + "/next_step.json"),
                with_checksum("{\n \"iteration\": 101\n}\n"));
      before = after;
    }
  }
}

TEST(Reshard, KeepsEverythingElseAndBalancesTheBytes) {
  const TemporaryFolder folder;
  const Manifest old = write_fixture(folder / "old", {.row_cuts = 5, .num_shards = 2});
  reshard_checkpoint(folder / "old", folder / "iter_0000100", 4);
  Manifest made = read_checkpoint_manifest(folder / "iter_0000100");
  constexpr int64_t kLargestRow = 1024;
  const int64_t share = old.data_bytes() / 4 / (kNumParts * 4);
  for (const SavedShard& shard : made.shards) {
    int64_t elements = 0;
    for (const SavedBlock& block : shard.blocks) elements += block.numel();
    EXPECT_NEAR(static_cast<double>(elements), static_cast<double>(share), kLargestRow)
        << shard.file;
  }
  EXPECT_EQ(made.shards[0].blocks.size(), 1);  // rows of one tensor that follow each other are one
  made.shards = old.shards;
  made.index_bytes = old.index_bytes;
  made.index_digest = old.index_digest;
  EXPECT_TRUE(made == old);
}

TEST(Reshard, WithMoreShardsThanRowsLeavesSomeEmpty) {
  const TemporaryFolder folder;
  write_fixture(folder / "old", {.tensors = {{"v", {2, 64}}, {"w", {3}}}});
  reshard_checkpoint(folder / "old", folder / "new", 9);
  EXPECT_THAT(damages(folder / "new"), IsEmpty());
  expect_equal_tensors(folder / "old", folder / "new");
}

TEST(Reshard, RefusesWhatIsThereAndNamesThatMislead) {
  const TemporaryFolder folder;
  write_fixture(folder / "old", {});
  fs::create_directory(folder / "there");
  const auto message = [&](const std::string& target, int64_t num_shards) {
    return message_of([&] { reshard_checkpoint(folder / "old", folder / target, num_shards); });
  };
  EXPECT_THAT(message("there", 2), HasSubstr("there is there already"));
  EXPECT_THAT(message("iter_0000200", 2), HasSubstr("call it iter_0000100"));
  EXPECT_THAT(message("new", 0), HasSubstr("--shards is 0; give a number from 1"));
  EXPECT_THAT(message("no/such/folder", 2), HasSubstr("cannot make the folder"));
  EXPECT_FALSE(fs::exists(folder / "new"));
  EXPECT_TRUE(fs::is_empty(folder / "there"));
}

TEST(Reshard, OfADamagedCheckpointLeavesNothing) {
  const TemporaryFolder folder;
  write_fixture(folder / "old", {.row_cuts = 3, .num_shards = 2});
  spoil(folder / "old");
  EXPECT_THROW(reshard_checkpoint(folder / "old", folder / "new", 2), CheckpointDamage);
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder / "."))
    names.push_back(entry.path().filename());
  EXPECT_THAT(names, ElementsAre("old"));
}

TEST(Export, WritesTheWeightsAndTheirAttributes) {
  const TemporaryFolder folder;
  for (const DType dtype : {DType::f32, DType::f64}) {
    const std::string path = folder / dtype_name(dtype);
    write_fixture(path, {.row_cuts = 3, .column_cuts = 4, .num_shards = 4, .dtype = dtype});
    const std::string exported = path + ".h5";
    export_weights(path, exported);
    const Hdf5File file = Hdf5File::open(exported);
    const WeightsInfo info = read_weights_info(file, exported);
    EXPECT_EQ(info.config_ini, FixtureCheckpoint().config_ini);
    EXPECT_EQ(info.step, 100);
    EXPECT_EQ(info.consumed_samples, 800);
    EXPECT_EQ(info.tokenizer_hash, "0123abcd");
    EXPECT_THAT(file.datasets(), ElementsAre("embedding.weight", "layers.00.attention.q.weight",
                                             "layers.00.mlp.down.weight", "layers.00.norm.weight"));
    for (const SavedTensor& tensor : FixtureCheckpoint().tensors) {
      ASSERT_TRUE(file.shape(tensor.name) == tensor.shape);
      ASSERT_EQ(file.dtype(tensor.name), dtype);
      std::vector<double> wide(static_cast<size_t>(tensor.shape.numel()));
      std::vector<float> narrow(wide.size());
      file.read(tensor.name, dtype == DType::f64 ? cpu_tensor(wide.data(), tensor.shape)
                                                 : cpu_tensor(narrow.data(), tensor.shape));
      if (dtype == DType::f32) wide.assign(narrow.begin(), narrow.end());
      EXPECT_EQ(wide, read_fixture(path, tensor.name, 0)) << tensor.name;
    }
    EXPECT_THAT(message_of([&] { export_weights(path, exported); }), HasSubstr("there already"));
  }
}

TEST(Export, OfADamagedCheckpointLeavesNothing) {
  const TemporaryFolder folder;
  write_fixture(folder / "a", {});
  spoil(folder / "a");
  EXPECT_THROW(export_weights(folder / "a", folder / "weights.h5"), CheckpointDamage);
  EXPECT_FALSE(fs::exists(folder / "weights.h5"));
}

/// A run folder with two complete checkpoints, one damaged, and leftovers.
class Listing : public testing::Test {
 protected:
  Listing() {
    for (const int64_t step : {100, 200, 300})
      write_fixture(save_ + fmt::format("/iter_{:07d}", step), {.step = step});
    fs::remove(save_ + "/iter_0000300/shard_00001.h5");
    fs::create_directory(save_ + "/iter_0000400.writing.3");
    fs::create_directory(save_ + "/iter_0000050.damaged");
    write_file(save_ + "/latest_checkpointed_iteration.txt", "300\n");
  }
  TemporaryFolder root_;
  std::string save_ = root_ / "run/checkpoints";
};

TEST_F(Listing, FindsTheSameFromEveryFolder) {
  for (const std::string& path : {root_ / "run", save_, save_ + "/"}) {
    const FoundCheckpoints found = find_checkpoints(path);
    EXPECT_EQ(found.save, save_);
    EXPECT_THAT(found.folders, ElementsAre(save_ + "/iter_0000100", save_ + "/iter_0000200",
                                           save_ + "/iter_0000300"));
    EXPECT_THAT(found.incomplete,
                ElementsAre(save_ + "/iter_0000050.damaged", save_ + "/iter_0000400.writing.3"));
  }
  EXPECT_THAT(find_checkpoints(save_ + "/iter_0000100/").folders,
              ElementsAre(save_ + "/iter_0000100"));
  EXPECT_THAT(message_of([&] { find_checkpoints(root_ / "nothing"); }), HasSubstr("no folder"));
  fs::create_directory(root_ / "empty");
  EXPECT_THAT(message_of([&] { find_checkpoints(root_ / "empty"); }),
              HasSubstr("holds no checkpoints"));
}

TEST_F(Listing, OneCheckpointIsTheNewestWithCommitted) {
  fs::remove(save_ + "/iter_0000300/COMMITTED");
  EXPECT_EQ(one_checkpoint(root_ / "run"), save_ + "/iter_0000200");
  EXPECT_EQ(one_checkpoint(save_ + "/iter_0000100"), save_ + "/iter_0000100");
}

TEST_F(Listing, SummariesTellSizesCertificatesAndDamage) {
  write_file(save_ + "/iter_0000100/next_step.json", "{}");
  const CheckpointSummary whole = summarise_checkpoint(save_ + "/iter_0000100");
  EXPECT_EQ(whole.damage, "");
  EXPECT_TRUE(whole.has_certificate);
  EXPECT_GT(whole.bytes, whole.manifest->data_bytes());
  EXPECT_FALSE(summarise_checkpoint(save_ + "/iter_0000200").has_certificate);
  EXPECT_EQ(summarise_checkpoint(save_ + "/iter_0000300").damage, "shard_00001.h5 is missing");
  fs::resize_file(save_ + "/iter_0000200/index.h5", 10);
  EXPECT_THAT(summarise_checkpoint(save_ + "/iter_0000200").damage, HasSubstr("bytes, found 10"));
}

}  // namespace
}  // namespace phalanx
