// Files by position, small files replaced whole, and room on the disk.
#include "data/file_io.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include <thread>

#include "tests/data/data_helpers.h"

namespace phalanx {
namespace {

using Access = PositionalFile::Access;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(PositionalFile, WritesAndReadsByPosition) {
  const TemporaryFolder folder;
  spit(folder / "a", "0123456789");
  PositionalFile file(folder / "a", Access::write);
  EXPECT_EQ(file.bytes(), 10);
  EXPECT_EQ(file.path(), folder / "a");
  file.write(3, "abc", 3);
  file.write(12, "z", 1);
  file.sync();
  EXPECT_EQ(slurp(folder / "a"), std::string("012abc6789\0\0z", 13));
  std::string found(4, ' ');
  file.read(2, found.data(), 4);
  EXPECT_EQ(found, "2abc");
  file.read(13, found.data(), 0);
  EXPECT_EQ(file.bytes_read(), 4);
  const PositionalFile moved(std::move(file));
  moved.read(0, found.data(), 1);
  EXPECT_EQ(moved.bytes_read(), 5);
}

TEST(PositionalFile, ErrorsNameFileAndReason) {
  const TemporaryFolder folder;
  EXPECT_THAT(message_of([&] { PositionalFile(folder / "none", Access::read); }),
              AllOf(HasSubstr(folder / "none"), HasSubstr("No such file")));
  spit(folder / "a", "0123456789");
  PositionalFile file(folder / "a", Access::read);
  std::string found(8, ' ');
  EXPECT_THAT(message_of([&] { file.read(4, found.data(), 8); }),
              HasSubstr(folder / "a ends at byte 10; 8 bytes were wanted at 4"));
  EXPECT_EQ(file.bytes_read(), 0);
  EXPECT_THAT(message_of([&] { file.write(0, "x", 1); }),
              AllOf(HasSubstr("cannot write 1 bytes at 0 of " + (folder / "a")),
                    HasSubstr("Bad file descriptor")));
  EXPECT_THAT(message_of([&] { file.read(-1, found.data(), 1); }), HasSubstr("Invalid argument"));
}

TEST(PositionalFile, ThreadsUseItSideBySide) {
  const TemporaryFolder folder;
  spit(folder / "a", "");
  PositionalFile file(folder / "a", Access::write);
  constexpr int64_t kNumThreads = 4;
  constexpr int64_t kNumWords = 2000;
  const auto work = [&](int64_t thread) {
    for (int64_t i = thread; i < kNumWords; i += kNumThreads) {
      file.write(i * 8, &i, 8);
      int64_t found = 0;
      file.read(i * 8, &found, 8);
      ASSERT_EQ(found, i);
    }
  };
  {
    std::vector<std::jthread> threads;
    for (int64_t t = 0; t < kNumThreads; ++t) threads.emplace_back(work, t);
  }
  EXPECT_EQ(file.bytes_read(), kNumWords * 8);
  std::vector<int64_t> words(kNumWords);
  file.read(0, words.data(), kNumWords * 8);
  for (int64_t i = 0; i < kNumWords; ++i) ASSERT_EQ(words[static_cast<size_t>(i)], i);
}

TEST(FileIo, SmallFilesAreReplacedWhole) {
  const TemporaryFolder folder;
  write_file(folder / "a", "first");
  const std::string text = std::string(3'000'000, 'x') + std::string(1, '\0') + "end";
  write_file(folder / "a", text);
  EXPECT_EQ(read_file(folder / "a"), text);
  EXPECT_THAT(folder.files(), ElementsAre("a"));
  write_file(folder / "a", "");
  EXPECT_EQ(file_bytes(folder / "a"), 0);
  EXPECT_THROW(write_file(folder / "none/a", "x"), UsageError);
  EXPECT_NO_THROW(sync_folder(folder_of(folder / "a")));
  EXPECT_THAT(message_of([&] { sync_folder(folder / "none"); }), HasSubstr(folder / "none"));
}

TEST(FileIo, RoomOnTheDisk) {
  const TemporaryFolder folder;
  EXPECT_GT(free_bytes(folder_of(folder / "a")), 0);
  EXPECT_THAT(message_of([&] { free_bytes(folder / "none"); }), HasSubstr(folder / "none"));
  spit(folder / "a", "kept");
  reserve_file(folder / "a", 100'000);
  EXPECT_EQ(file_bytes(folder / "a"), 100'000);
  EXPECT_EQ(read_file(folder / "a").substr(0, 5), std::string("kept\0", 5));
  struct stat info {};
  ASSERT_EQ(::stat((folder / "a").c_str(), &info), 0);
  EXPECT_GE(info.st_blocks * 512, 100'000);
  spit(folder / "b", "kept");
  EXPECT_NO_THROW(reserve_file_if_cheap(folder / "b", 100'000));
  EXPECT_EQ(read_file(folder / "b").substr(0, 4), "kept");
  EXPECT_THAT(message_of([&] { reserve_file_if_cheap(folder / "b", int64_t{1} << 60); }),
              HasSubstr("cannot reserve"));
}

}  // namespace
}  // namespace phalanx
