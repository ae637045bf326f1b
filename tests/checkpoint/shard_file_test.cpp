// Shards: bytes by position, frames that notice every change, and errors that name the file.
#include "core/checkpoint/shard_file.h"

#include <fmt/format.h>

#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "data/hdf5_file.h"
#include "tests/checkpoint/sample_checkpoint.h"
#include "tests/data/data_helpers.h"

/// Asked by LeakSanitizer, in builds that have it: the library leaks 2 KiB whenever a disk is full.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libhdf5";
}

namespace phalanx {
namespace {

using testing::AllOf;
using testing::HasSubstr;

/// The text of the CheckpointDamage that `action` throws.
template <class Action>
std::string damage_of(Action&& action) {
  try {
    action();
  } catch (const CheckpointDamage& error) {
    return error.what();
  }
  return "no CheckpointDamage";
}

/// What `first` and `second` have in common; a size is 0 or less if nothing.
BlockRange common_range(const SavedBlock& block, const BlockRange& range) {
  BlockRange common;
  for (size_t dim = 0; dim < 2; ++dim) {
    common.offset[dim] = std::max(block.offset[dim], range.offset[dim]);
    common.size[dim] =
        std::min(block.offset[dim] + block.size[dim], range.offset[dim] + range.size[dim]) -
        common.offset[dim];
  }
  return common;
}

BlockRange random_range(std::array<int64_t, 2> whole, std::mt19937& random) {
  BlockRange range;
  for (size_t dim = 0; dim < 2; ++dim) {
    const auto below = [&](int64_t end) {
      return std::uniform_int_distribution<int64_t>(0, end)(random);
    };
    range.offset[dim] = below(whole[dim] - 1);
    range.size[dim] = 1 + below(whole[dim] - range.offset[dim] - 1);
  }
  return range;
}

template <class T>
class ShardFile : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(ShardFile, Types);

TYPED_TEST(ShardFile, RandomRectanglesComeBackBitForBit) {
  const TemporaryFolder folder;
  const SampleCheckpoint<TypeParam> sample(folder / "iter", 1);
  const Manifest& manifest = sample.manifest();
  std::vector<PositionalFile> files;
  for (const SavedShard& shard : manifest.shards)
    files.push_back(open_shard(sample.folder(), shard, manifest.dtype));
  std::mt19937 random(2);
  for (int attempt = 0; attempt < 1000; ++attempt) {
    const size_t t = random() % manifest.tensors.size();
    const int part = static_cast<int>(random() % kNumParts);
    const auto whole = matrix_size(manifest.tensors[t].shape);
    const BlockRange range = random_range(whole, random);
    const int64_t stride = range.size[1] + static_cast<int64_t>(random() % 3);
    std::vector<TypeParam> found(static_cast<size_t>(range.size[0] * stride), TypeParam{-1});
    std::vector<TypeParam> expected = found;
    for (int64_t r = 0; r < range.size[0]; ++r)
      for (int64_t c = 0; c < range.size[1]; ++c)
        expected[static_cast<size_t>(r * stride + c)] = sample.value(
            t, part, static_cast<size_t>((range.offset[0] + r) * whole[1] + range.offset[1] + c));
    int64_t before = 0;
    int64_t after = 0;
    for (size_t s = 0; s < files.size(); ++s) {
      before += files[s].bytes_read();
      for (const SavedBlock& block : manifest.shards[s].blocks) {
        const BlockRange common = common_range(block, range);
        if (block.tensor != manifest.tensors[t].name || common.size[0] <= 0 || common.size[1] <= 0)
          continue;
        const int64_t place =
            (common.offset[0] - range.offset[0]) * stride + common.offset[1] - range.offset[1];
        read_block_range(files[s], {block, part, manifest.dtype}, common, found.data() + place,
                         stride);
      }
      after += files[s].bytes_read();
    }
    ASSERT_EQ(found, expected) << manifest.tensors[t].name;
    ASSERT_EQ(after - before,
              range.size[0] * range.size[1] * static_cast<int64_t>(sizeof(TypeParam)));
  }
}

/// One shard of two blocks, written.
struct SmallShard {
  explicit SmallShard(const TemporaryFolder& folder) : folder(folder / "small") {
    make_folders(this->folder);
    shard.bytes = lay_out_shard(path(), shard.blocks, DType::f32, tensors);
    PositionalFile file(path(), PositionalFile::Access::write);
    const std::string data(5 * 6 * 4, '\x5a');
    for (const SavedBlock& block : shard.blocks)
      for (const int64_t place : block.place) file.write(place, data.data(), block.numel() * 4);
    shard.frame_digest = digest();
  }
  std::string path() const { return folder + "/" + shard.file; }
  uint64_t digest() const {
    return frame_digest(PositionalFile(path(), PositionalFile::Access::read), shard, DType::f32);
  }
  bool is_data(int64_t byte) const {
    for (const SavedBlock& block : shard.blocks)
      for (const int64_t place : block.place)
        if (place <= byte && byte < place + block.numel() * 4) return true;
    return false;
  }

  std::string folder;
  std::vector<SavedTensor> tensors{{"a.weight", {10, 6}}, {"b", {9}}};
  SavedShard shard{.file = "shard_00004.h5",
                   .blocks = {{.tensor = "a.weight", .offset = {5, 0}, .size = {5, 6}},
                              {.tensor = "b", .offset = {2, 0}, .size = {7, 1}}}};
};

TEST(ShardLayout, NamesAndPlaces) {
  const TemporaryFolder folder;
  const SmallShard small(folder);
  EXPECT_EQ(shard_name(3), "shard_00003.h5");
  EXPECT_EQ(dataset_name(small.shard.blocks[0], 1), "optimizer.exp_avg/a.weight@5,0");
  const Hdf5File file = Hdf5File::open(small.path());
  EXPECT_THAT(file.datasets(),
              testing::ElementsAre("a.weight@5,0", "b@2,0", "optimizer.exp_avg/a.weight@5,0",
                                   "optimizer.exp_avg/b@2,0", "optimizer.exp_avg_sq/a.weight@5,0",
                                   "optimizer.exp_avg_sq/b@2,0"));
  EXPECT_EQ(file.shape("a.weight@5,0"), (Shape{5, 6}));
  EXPECT_EQ(file.shape("b@2,0"), (Shape{7}));
  for (const SavedBlock& block : small.shard.blocks)
    for (int part = 0; part < kNumParts; ++part)
      EXPECT_EQ(file.dataset_place(dataset_name(block, part)),
                block.place[static_cast<size_t>(part)]);
}

TEST(ShardLayout, TheSameBlocksGiveTheSameBytes) {
  const TemporaryFolder folder;
  SmallShard small(folder);
  const std::string first = slurp(small.path());
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // times in files are seconds
  const SmallShard again(folder);
  EXPECT_EQ(slurp(again.path()), first);
  EXPECT_EQ(again.shard, small.shard);
  EXPECT_THAT(folder.files(), testing::ElementsAre("shard_00004.h5"));
}

TEST(ShardFrame, NoticesEveryByteButThoseOfBlocks) {
  const TemporaryFolder folder;
  const SmallShard small(folder);
  PositionalFile file(small.path(), PositionalFile::Access::write);
  int64_t data_bytes = 0;
  for (int64_t i = 0; i < small.shard.bytes; ++i) {
    uint8_t byte = 0;
    file.read(i, &byte, 1);
    const uint8_t flipped = byte ^ static_cast<uint8_t>(1U << (i % 8));
    file.write(i, &flipped, 1);
    const bool same = frame_digest(file, small.shard, DType::f32) == small.shard.frame_digest;
    ASSERT_EQ(same, small.is_data(i)) << "byte " << i;
    data_bytes += same ? 1 : 0;
    file.write(i, &byte, 1);
  }
  EXPECT_EQ(data_bytes, kNumParts * (30 + 7) * 4);
  EXPECT_NO_THROW(open_shard(small.folder, small.shard, DType::f32));
}

TEST(ShardFrame, DamageNamesFileExpectedAndFound) {
  const TemporaryFolder folder;
  const SmallShard small(folder);
  const std::string whole = slurp(small.path());
  const auto damage = [&] {
    return damage_of([&] { open_shard(small.folder, small.shard, DType::f32); });
  };
  const std::string bytes = std::to_string(small.shard.bytes);
  std::string changed = whole;
  changed[8] ^= 1;  // version of the superblock
  spit(small.path(), changed);
  EXPECT_THAT(damage(), AllOf(HasSubstr("small/shard_00004.h5"), HasSubstr("expected checksum"),
                              HasSubstr("found")));
  for (const size_t size : {size_t{0}, size_t{100}, whole.size() - 1}) {
    spit(small.path(), whole.substr(0, size));
    EXPECT_THAT(damage(), AllOf(HasSubstr("small/shard_00004.h5"), HasSubstr("expected " + bytes),
                                HasSubstr("found " + std::to_string(size))));
  }
  spit(small.path(), whole + "x");
  EXPECT_THAT(damage(), HasSubstr("found " + std::to_string(small.shard.bytes + 1)));
  ::unlink(small.path().c_str());
  EXPECT_THAT(damage(), HasSubstr("small/shard_00004.h5 is missing"));
  make_folders(small.path());
  EXPECT_THAT(damage(), HasSubstr("small/shard_00004.h5 is missing"));
}

TEST(ShardFrame, BlocksMustLieApartAndInTheFile) {
  const TemporaryFolder folder;
  SmallShard small(folder);
  const SavedShard good = small.shard;
  small.shard.blocks[1].place[2] = good.blocks[0].place[0] + 4;
  EXPECT_THAT(damage_of([&] { small.digest(); }), HasSubstr("two blocks share bytes"));
  constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
  for (const int64_t place : {int64_t{-1}, good.bytes - 27, good.bytes + 1, kLargest}) {
    small.shard = good;
    small.shard.blocks[1].place[0] = place;
    EXPECT_THAT(damage_of([&] { small.digest(); }),
                AllOf(HasSubstr("shard_00004.h5"), HasSubstr("b has 28 bytes")));
  }
}

TEST(ShardErrors, RangesAndBlocksThatDoNotFit) {
  const TemporaryFolder folder;
  SmallShard small(folder);
  const PositionalFile file(small.path(), PositionalFile::Access::read);
  std::vector<float> target(100);
  const auto read = [&](const BlockRange& range, int64_t stride) {
    read_block_range(file, {small.shard.blocks[0], 0, DType::f32}, range, target.data(), stride);
  };
  EXPECT_NO_THROW(read({{5, 0}, {5, 6}}, 6));
  EXPECT_THROW(read({{4, 0}, {1, 1}}, 6), Error);
  EXPECT_THROW(read({{5, 0}, {6, 1}}, 6), Error);
  EXPECT_THROW(read({{5, 5}, {1, 2}}, 6), Error);
  EXPECT_THROW(read({{5, 0}, {2, 6}}, 5), Error);
  EXPECT_EQ(file.bytes_read(), 5 * 6 * 4);

  small.shard.blocks[0].tensor = "c";
  EXPECT_THAT(message_of([&] {
                lay_out_shard(small.path(), small.shard.blocks, DType::f32, small.tensors);
              }),
              HasSubstr("a block [5, 6] of c"));
}

TEST(ShardErrors, NoRoom) {
  const TemporaryFolder folder;
  SmallShard small(folder);
  small.shard.blocks[0].size = {int64_t{1} << 30, int64_t{1} << 20};
  EXPECT_THAT(message_of([&] {
                lay_out_shard(small.path(), small.shard.blocks, DType::f32, small.tensors);
              }),
              AllOf(HasSubstr("no room for"), HasSubstr("shard_00004.h5"), HasSubstr("are free")));
}

/// A process that may not write past the first `limit` bytes of a file, which is how a full disk
/// looks to it. Exits 0 if lay_out_shard says so, once more works in the same process, and nothing
/// is left behind.
[[noreturn]] void lay_out_on_a_full_disk(const TemporaryFolder& folder, rlim_t limit) {
  std::signal(SIGXFSZ, SIG_IGN);
  SmallShard small(folder);  // the library has been in use
  rlimit limits{limit, RLIM_INFINITY};
  ::setrlimit(RLIMIT_FSIZE, &limits);
  std::vector<SavedBlock> blocks{{.tensor = "large", .offset = {0, 0}, .size = {1000, 1000}}};
  const std::vector<SavedTensor> tensors{{"large", {1000, 1000}}};
  const auto lay_out = [&] { lay_out_shard(folder / "large.h5", blocks, DType::f32, tensors); };
  const std::string message = message_of(lay_out);
  const bool clear = message.find("large.h5") != std::string::npos &&
                     message.find("File too large") != std::string::npos;
  if (!clear || file_exists(folder / "large.h5")) {
    fmt::print(stderr, "found: {}\n", message);
    std::exit(1);
  }
  limits.rlim_cur = RLIM_INFINITY;
  ::setrlimit(RLIMIT_FSIZE, &limits);
  lay_out();
  Hdf5File::open(folder / "large.h5");
  std::exit(folder.files().size() == 2 ? 0 : 2);
}

TEST(ShardErrors, AFullDiskIsAnErrorAndNotTheEnd) {
  for (const rlim_t limit : {0, 1, 4096, 4'000'000, 11'999'999}) {
    const TemporaryFolder folder;
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) lay_out_on_a_full_disk(folder, limit);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
        << "limit " << limit << ": status " << status;
  }
}

}  // namespace
}  // namespace phalanx
