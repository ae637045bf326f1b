// The index: whole tensors over the shards, wherever the folder lies.
#include "core/checkpoint/index_file.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "data/hdf5_file.h"
#include "tests/checkpoint/sample_checkpoint.h"
#include "tests/data/data_helpers.h"

namespace phalanx {
namespace {

using testing::HasSubstr;

template <class T>
std::vector<T> read_whole(const Hdf5File& file, const std::string& name) {
  std::vector<T> values(static_cast<size_t>(file.shape(name).numel()));
  file.read(name, cpu_tensor(values.data(), file.shape(name)));
  return values;
}

template <class T>
void expect_whole(const std::string& folder, const SampleCheckpoint<T>& sample) {
  const Hdf5File file = Hdf5File::open(folder + "/index.h5");
  const auto& tensors = sample.manifest().tensors;
  EXPECT_EQ(file.datasets().size(), tensors.size() * kNumParts);
  for (size_t t = 0; t < tensors.size(); ++t)
    for (int part = 0; part < kNumParts; ++part) {
      const std::string name = kPartPrefix[static_cast<size_t>(part)] + tensors[t].name;
      EXPECT_EQ(file.shape(name), tensors[t].shape);
      EXPECT_EQ(file.dtype(name), DTypeOf<T>::value);
      EXPECT_EQ(read_whole<T>(file, name), sample.values(t, part)) << name;
    }
}

TEST(IndexFile, HoldsEveryTensorWholeAndMovesWithItsFolder) {
  const TemporaryFolder folder;
  const SampleCheckpoint<float> f32(folder / "a", 3);
  const SampleCheckpoint<double> f64(folder / "b", 4);
  expect_whole(folder / "a", f32);
  expect_whole(folder / "b", f64);
  std::filesystem::create_directories(folder / "other/place");
  std::filesystem::rename(folder / "a", folder / "other/place/a");
  expect_whole(folder / "other/place/a", f32);
  const Hdf5File file = Hdf5File::open(folder / "b/index.h5");
  EXPECT_EQ(file.attribute("/", "step"), "12");
  EXPECT_EQ(file.attribute("/", "consumed_samples"), "345");
  EXPECT_EQ(file.attribute("/", "tokenizer_hash"), "abc");
  EXPECT_EQ(file.attribute("/", "config"), "seed = 1\n");
}

TEST(IndexFile, ElementsOfAMissingShardReadAsNaN) {
  const TemporaryFolder folder;
  const SampleCheckpoint<float> sample(folder / "a", 5);
  const SavedShard& gone = sample.manifest().shards[1];
  ::unlink((sample.folder() + "/" + gone.file).c_str());
  int64_t num_missing = 0;
  int64_t num_expected = 0;
  for (const SavedBlock& block : gone.blocks) num_expected += kNumParts * block.numel();
  const Hdf5File file = Hdf5File::open(sample.folder() + "/index.h5");
  const auto& tensors = sample.manifest().tensors;
  for (size_t t = 0; t < tensors.size(); ++t)
    for (int part = 0; part < kNumParts; ++part) {
      const auto values =
          read_whole<float>(file, kPartPrefix[static_cast<size_t>(part)] + tensors[t].name);
      for (size_t i = 0; i < values.size(); ++i) {
        num_missing += std::isnan(values[i]) ? 1 : 0;
        EXPECT_TRUE(std::isnan(values[i]) || values[i] == sample.value(t, part, i));
      }
    }
  EXPECT_EQ(num_missing, num_expected);
}

TEST(IndexFile, IsReplacedWholeAndTheSameBytes) {
  const TemporaryFolder folder;
  const SampleCheckpoint<float> sample(folder / "a", 6);
  const std::string first = slurp(folder / "a/index.h5");
  write_index(folder / "a/index.h5", sample.manifest());
  EXPECT_EQ(slurp(folder / "a/index.h5"), first);
  EXPECT_THAT(folder.files(), testing::UnorderedElementsAre("index.h5", "shard_00000.h5",
                                                            "shard_00001.h5", "shard_00002.h5"));
  Manifest lacking = sample.manifest();
  lacking.tensors.push_back({"z.weight", {2, 2}});
  EXPECT_THAT(message_of([&] { write_index(folder / "a/index.h5", lacking); }),
              HasSubstr("no shard has a block of z.weight"));
  EXPECT_EQ(slurp(folder / "a/index.h5"), first);
}

}  // namespace
}  // namespace phalanx
