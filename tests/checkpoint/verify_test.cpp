// Verification: intact checkpoints pass, and every damage is found and named.
#include "core/checkpoint/verify.h"

#include <fmt/format.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "core/checkpoint/checked_json.h"
#include "core/checkpoint/checkpoint_reader.h"
#include "data/file_io.h"
#include "tests/checkpoint/checkpoint_fixture.h"
#include "tests/data/data_helpers.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using Lines = std::vector<std::string>;

/// A checkpoint of 4 shards whose tensors are cut both ways.
class Verify : public testing::Test {
 protected:
  Verify() { manifest_ = write_fixture(path_, {.row_cuts = 3, .column_cuts = 4, .num_shards = 4}); }

  VerifyReport verify(int threads = 1) const {
    return verify_checkpoint(path_, {.threads = threads});
  }
  Lines damages() const { return verify().damages; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

  TemporaryFolder root_;
  std::string path_ = root_ / "iter_0000100";
  Manifest manifest_;
};

TEST_F(Verify, AnIntactCheckpointPassesWithAnyNumberOfThreads) {
  for (const int threads : {0, 1, 2, 7}) {
    const VerifyReport report = verify(threads);
    EXPECT_THAT(report.damages, IsEmpty());
    EXPECT_THAT(report.notes, IsEmpty());
    EXPECT_EQ(report.bytes, manifest_.data_bytes());
  }
}

TEST_F(Verify, ProgressGrowsToTheTotal) {
  int64_t last = 0;
  verify_checkpoint(path_, {.threads = 3, .progress = [&](int64_t done, int64_t total) {
                              EXPECT_GT(done, last);
                              EXPECT_EQ(total, manifest_.data_bytes());
                              last = done;
                            }});
  EXPECT_EQ(last, manifest_.data_bytes());
}

TEST_F(Verify, NamesExactlyTheFlippedBlock) {
  std::mt19937_64 random(5);
  for (int flip = 0; flip < 100; ++flip) {
    const SavedShard& shard = manifest_.shards[random() % manifest_.shards.size()];
    const SavedBlock& block = shard.blocks[random() % shard.blocks.size()];
    const size_t part = random() % kNumParts;
    const auto bytes = static_cast<uint64_t>(block.numel() * dtype_bytes(manifest_.dtype));
    const int64_t byte = block.place[part] + static_cast<int64_t>(random() % bytes);
    const int bit = static_cast<int>(random() % 8);
    flip_bit(file(shard.file), byte, bit);
    const std::string name = fmt::format("{}: {}{}, rows {} to {}, columns {} to {}: checksum",
                                         file(shard.file), kPartPrefix[part], block.tensor,
                                         block.offset[0], block.offset[0] + block.size[0],
                                         block.offset[1], block.offset[1] + block.size[1]);
    EXPECT_THAT(verify(1 + flip % 3).damages, ElementsAre(HasSubstr(name)));
    flip_bit(file(shard.file), byte, bit);
  }
  EXPECT_THAT(damages(), IsEmpty());
}

TEST_F(Verify, FindsAnyFlipInAnyFile) {
  std::mt19937_64 random(6);
  for (const auto& entry : fs::directory_iterator(path_))
    for (int flip = 0; flip < 20; ++flip) {
      const auto byte = static_cast<int64_t>(random() % entry.file_size());
      const int bit = static_cast<int>(random() % 8);
      flip_bit(entry.path(), byte, bit);
      EXPECT_THAT(damages(), Contains(HasSubstr(entry.path().filename().string())))
          << entry.path() << " byte " << byte << " bit " << bit;
      flip_bit(entry.path(), byte, bit);
    }
  EXPECT_THAT(damages(), IsEmpty());
}

TEST_F(Verify, FindsAllDamagesAndNotOnlyTheFirst) {
  const auto spoil = [&](size_t shard, size_t block, size_t part) {
    flip_bit(file(manifest_.shards[shard].file), manifest_.shards[shard].blocks[block].place[part],
             0);
  };
  spoil(0, 0, 0);
  spoil(0, 0, 2);
  spoil(1, 1, 1);
  flip_bit(file("shard_00002.h5"), 0, 0);  // of its frame
  spoil(2, 0, 0);
  fs::remove(file("shard_00003.h5"));
  fs::remove(file("COMMITTED"));
  flip_bit(file("index.h5"), 100, 1);
  EXPECT_THAT(damages(),
              ElementsAre(HasSubstr("COMMITTED is missing"), HasSubstr("index.h5: checksum is"),
                          HasSubstr("shard_00000.h5: embedding.weight, rows 0 to 32"),
                          HasSubstr("shard_00000.h5: optimizer.exp_avg_sq/embedding.weight"),
                          HasSubstr("shard_00001.h5: optimizer.exp_avg/"),
                          HasSubstr("shard_00002.h5: the description of its datasets"),
                          HasSubstr("shard_00002.h5: embedding.weight"),
                          HasSubstr("shard_00003.h5 is missing"),
                          AllOf(HasSubstr("shard_00003.h5"), HasSubstr("blocks are lost"))));
}

TEST_F(Verify, ATruncatedShardTellsWhatIsLostAndChecksTheRest) {
  const SavedShard& shard = manifest_.shards[1];
  flip_bit(file(shard.file), shard.blocks[0].place[0], 3);
  fs::resize_file(file(shard.file), static_cast<size_t>(shard.blocks.back().place[0] + 1));
  EXPECT_THAT(damages(), ElementsAre(HasSubstr(fmt::format("expected {} bytes", shard.bytes)),
                                     HasSubstr("blocks are lost, the first of"),
                                     HasSubstr(shard.blocks[0].tensor)));
}

TEST_F(Verify, FindsZeroedBlocksSwappedShardsAndAppendedBytes) {
  const std::string first = file("shard_00000.h5");
  const std::string second = file("shard_00001.h5");
  const std::string kept = read_file(first);
  const SavedBlock& block = manifest_.shards[0].blocks[1];
  std::string zeroed = kept;
  const auto bytes = static_cast<size_t>(block.numel() * dtype_bytes(manifest_.dtype));
  std::fill_n(zeroed.begin() + block.place[1], bytes, '\0');
  write_file(first, zeroed);
  EXPECT_THAT(damages(), ElementsAre(HasSubstr("optimizer.exp_avg/" + block.tensor)));
  write_file(first, kept + "x");
  EXPECT_THAT(damages(), ElementsAre(HasSubstr("bytes, found")));
  fs::rename(second, first);
  write_file(second, kept);
  EXPECT_THAT(damages(),
              AllOf(Contains(HasSubstr("shard_00000.h5")), Contains(HasSubstr("shard_00001.h5"))));
}

TEST_F(Verify, BlocksThatChangedPlacesAreFound) {
  // Equal in size and content of another place: only the leaves' numbers tell them apart.
  const std::string path = root_ / "equal_blocks";
  const Manifest manifest = write_fixture(path, {.row_cuts = 2, .num_shards = 2});
  const SavedBlock& a = manifest.shards[0].blocks[0];
  const SavedBlock& b = manifest.shards[1].blocks[0];
  ASSERT_EQ(a.tensor, b.tensor);
  ASSERT_EQ(a.place, b.place);
  const std::string first = read_file(path + "/shard_00000.h5");
  std::string second = read_file(path + "/shard_00001.h5");
  const auto bytes = static_cast<size_t>(a.numel() * dtype_bytes(manifest.dtype));
  std::copy_n(first.begin() + a.place[0], bytes, second.begin() + b.place[0]);
  write_file(path + "/shard_00001.h5", second);
  EXPECT_THAT(verify_checkpoint(path, {}).damages, ElementsAre(HasSubstr("shard_00001.h5: emb")));
}

TEST_F(Verify, FilesThatDoNotBelongAreNotedOnly) {
  write_file(file("next_step.json"), with_checksum("{\n \"iteration\": 101\n}\n"));
  write_file(file("core.1234"), "x");
  const VerifyReport report = verify();
  EXPECT_TRUE(report.intact());
  EXPECT_THAT(report.notes, ElementsAre(HasSubstr("core.1234")));
}

TEST_F(Verify, OnlyTheGivenTensorsAreRead) {
  const SavedBlock& block = manifest_.shards[0].blocks[0];
  flip_bit(file("shard_00000.h5"), block.place[0], 0);
  const std::set<std::string> same{block.tensor};
  const std::set<std::string> other{"layers.00.norm.weight"};
  const auto only = [&](const std::set<std::string>& tensors) {
    return verify_checkpoint(path_, {.only = &tensors});
  };
  EXPECT_THAT(only(same).damages, ElementsAre(HasSubstr(block.tensor)));
  EXPECT_THAT(only(other).damages, IsEmpty());
  EXPECT_EQ(only(other).bytes, 64 * 3 * 4);
}

TEST_F(Verify, ACheckpointUnderAnothersNameIsDamage) {
  fs::rename(path_, root_ / "iter_0000200");
  path_ = root_ / "iter_0000200";
  EXPECT_THAT(damages(), ElementsAre(HasSubstr("of iteration 100, expected 200")));
}

TEST_F(Verify, AFolderWithoutManifestHasOneDamage) {
  fs::remove(file("manifest.json"));
  EXPECT_THAT(damages(), ElementsAre(HasSubstr("manifest.json is missing")));
}

TEST(CutRange, CoversEveryElementOnceInPiecesOfBoundedSize) {
  for (const int64_t max_bytes : {64, 100, 640, 4000, 1 << 20})
    for (const auto& [rows, columns] : {std::pair{5, 33}, {1, 1000}, {40, 1}, {7, 160}}) {
      std::vector<int> hits(static_cast<size_t>(rows * columns));
      for (const auto& piece :
           cut_range({.offset = {10, 32}, .size = {rows, columns}}, DType::f32, max_bytes)) {
        EXPECT_LE(piece.size[0] * piece.size[1] * 4, std::max<int64_t>(max_bytes, 64));
        EXPECT_EQ(piece.offset[1] % 16, 0);
        for (int64_t r = 0; r < piece.size[0]; ++r)
          for (int64_t c = 0; c < piece.size[1]; ++c)
            ++hits[static_cast<size_t>((piece.offset[0] - 10 + r) * columns + piece.offset[1] - 32 +
                                       c)];
      }
      EXPECT_THAT(hits, testing::Each(1)) << max_bytes << " bytes, " << rows << " x " << columns;
    }
}

}  // namespace
}  // namespace phalanx
