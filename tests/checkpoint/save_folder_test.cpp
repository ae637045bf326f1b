// SaveFolder in one living process: names, order, retention, replacing, what may not be taken for a
// checkpoint, and errors.
#include "core/checkpoint/save_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "core/checkpoint/manifest.h"
#include "tests/checkpoint/kill_point.h"
#include "tests/checkpoint/save_tree.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(SaveFolder, NamesHaveSevenDigitsOrMore) {
  EXPECT_EQ(iteration_folder(0), "iter_0000000");
  EXPECT_EQ(iteration_folder(1000), "iter_0001000");
  EXPECT_EQ(iteration_folder(123456789012), "iter_123456789012");
  EXPECT_THROW(iteration_folder(-1), Error);
}

TEST(SaveFolder, CommitsInOrder) {
  const TestSave save;
  EXPECT_THAT(iterations(save.path()), ElementsAre());
  EXPECT_EQ(latest_iteration(save.path()), -1);
  SaveFolder folder(save.path() + "/");
  EXPECT_EQ(folder.path(), save.path());
  EXPECT_EQ(folder.epoch(), 1);

  const std::string written = folder.begin(9);
  EXPECT_EQ(written, save.path("iter_0000009.writing.1"));
  EXPECT_TRUE(fs::is_empty(written));
  fill_checkpoint(written, "nine");
  EXPECT_THAT(iterations(save.path()), ElementsAre());
  folder.commit(9);
  EXPECT_EQ(latest_iteration(save.path()), 9);
  save_checkpoint(folder, 10000000, "many");
  save_checkpoint(folder, 9999999, "fewer");
  EXPECT_THAT(iterations(save.path()), ElementsAre(10000000, 9999999, 9));
  EXPECT_EQ(list_checkpoints(save.path())[0].path, save.path("iter_10000000"));
  EXPECT_EQ(latest_iteration(save.path()), 9999999);
  EXPECT_THAT(names(save.path()),
              ElementsAre("epoch", "iter_0000009", "iter_10000000", "iter_9999999",
                          "latest_checkpointed_iteration.txt", "lock"));
}

TEST(SaveFolder, BeginIsEmptyAgainAfterAFailedSave) {
  const TestSave save;
  SaveFolder folder(save.path());
  put_file(folder.begin(5) + "/shard_00000.h5", "half");
  EXPECT_TRUE(fs::is_empty(folder.begin(5)));
  folder.abandon(5);
  folder.abandon(6);  // was never begun
  EXPECT_FALSE(fs::exists(save.path("iter_0000005.writing.1")));
  EXPECT_THAT(message_of<Error>([&] { folder.commit(5); }),
              HasSubstr("iter_0000005.writing.1 has no COMMITTED"));
}

TEST(SaveFolder, ReplacesAnIteration) {
  const TestSave save;
  SaveFolder folder(save.path());
  save_checkpoint(folder, 5, "old");
  save_checkpoint(folder, 5, "new");
  EXPECT_EQ(contents(save.path()), (std::map<int64_t, std::string>{{5, "new"}}));
  EXPECT_THAT(names(save.path()),
              ElementsAre("epoch", "iter_0000005", "latest_checkpointed_iteration.txt", "lock"));
}

TEST(SaveFolder, PutsBackWhatItCouldNotReplace) {
  const TestSave save;
  SaveFolder folder(save.path());
  save_checkpoint(folder, 5, "old");
  fill_checkpoint(folder.begin(5), "new");
  fail_rename(EIO, "/iter_0000005");  // the old one can go, the new one cannot come
  EXPECT_THAT(message_of<Error>([&] { folder.commit(5); }),
              HasSubstr("cannot rename " + save.path("iter_0000005.writing.1")));
  EXPECT_EQ(contents(save.path()), (std::map<int64_t, std::string>{{5, "old"}}));
  folder.commit(5);
  EXPECT_EQ(contents(save.path()), (std::map<int64_t, std::string>{{5, "new"}}));
}

TEST(SaveFolder, KeepsTheNewestAndTheMultiples) {
  const TestSave save;
  SaveFolder folder(save.path());
  for (const int64_t iteration : {10, 20, 30, 40, 50, 60}) save_checkpoint(folder, iteration, "x");
  EXPECT_THAT(folder.retire({.keep_last = 0, .retain_interval = 0}), ElementsAre());
  EXPECT_THAT(folder.retire({.keep_last = 0, .retain_interval = 20}), ElementsAre());
  EXPECT_THAT(folder.retire({.keep_last = 2, .retain_interval = 20}), ElementsAre(30, 10));
  EXPECT_THAT(iterations(save.path()), ElementsAre(60, 50, 40, 20));
  EXPECT_THAT(folder.retire({.keep_last = 3}), ElementsAre(20));
  EXPECT_THAT(folder.retire({.keep_last = 100}), ElementsAre());
  EXPECT_THAT(folder.retire({.keep_last = 1}), ElementsAre(50, 40));
  EXPECT_THAT(folder.retire({.keep_last = 1}), ElementsAre());
  EXPECT_THAT(names(save.path()),
              ElementsAre("epoch", "iter_0000060", "latest_checkpointed_iteration.txt", "lock"));
  EXPECT_THAT(message_of<Error>([&] { folder.retire({.keep_last = -1}); }), HasSubstr("-1"));
}

TEST(SaveFolder, RetireKeepsTheLastCommittedAfterAStepBack) {
  const TestSave save;
  SaveFolder folder(save.path());
  for (const int64_t iteration : {10, 20, 30, 15}) save_checkpoint(folder, iteration, "x");
  EXPECT_THAT(folder.retire({.keep_last = 1}), ElementsAre(20, 10));
  EXPECT_THAT(iterations(save.path()), ElementsAre(30, 15));
}

TEST(SaveFolder, RetireCountsOnlyWholeCheckpoints) {
  const TestSave save;
  SaveFolder folder(save.path());
  save_checkpoint(folder, 10, "x");
  save_checkpoint(folder, 20, "x");
  fs::create_directory(save.path("iter_0000099"));  // no COMMITTED: may be anything
  EXPECT_THAT(folder.retire({.keep_last = 1}), ElementsAre(10));
  EXPECT_TRUE(fs::exists(save.path("iter_0000099")));
}

TEST(SaveFolder, DamagedOnesAreSetAside) {
  const TestSave save;
  SaveFolder folder(save.path());
  save_checkpoint(folder, 10, "x");
  for (const char* content : {"first", "second"}) {
    save_checkpoint(folder, 20, content);
    folder.set_aside_damaged(20);
  }
  EXPECT_THAT(iterations(save.path()), ElementsAre(10));
  EXPECT_EQ(read_file(save.path("iter_0000020.damaged/shard_00000.h5")), "first");
  EXPECT_EQ(read_file(save.path("iter_0000020.damaged.2/shard_00000.h5")), "second");
  EXPECT_EQ(latest_iteration(save.path()), 20);  // a run must see that there was something
  EXPECT_THAT(folder.retire({.keep_last = 1}), ElementsAre());
  EXPECT_THROW(folder.set_aside_damaged(77), Error);
  const SaveFolder next(save.path());
  EXPECT_TRUE(fs::exists(save.path("iter_0000020.damaged.2")));
}

TEST(SaveFolder, UnknownNamesAreLeftAlone) {
  const TestSave save;
  const std::vector<std::string> unknown{"iter_7",
                                         "iter_00000007",
                                         "iter_0000007.writing.x",
                                         "iter_0000007.",
                                         "iter_0000007.mine",
                                         "iter_-000007",
                                         "iter_",
                                         "iter_0000007.a.b.c",
                                         "iter_99999999999999999999",
                                         "my notes",
                                         "iter_0000007.damaged.12",
                                         "iter_+000007",
                                         "epoch.copy.tmp.",
                                         "Iter_0000007"};
  for (const std::string& name : unknown) fill_checkpoint(save.path(name), name);
  put_file(save.path("iter_0000008"), "a file, not a folder");
  const auto before = tree(save.path());
  {
    SaveFolder folder(save.path());
    EXPECT_THAT(iterations(save.path()), ElementsAre());
    EXPECT_THAT(folder.retire({.keep_last = 1}), ElementsAre());
  }
  auto after = tree(save.path());
  EXPECT_EQ(after.erase("/epoch"), 1U);
  EXPECT_EQ(after.erase("/lock"), 1U);
  EXPECT_EQ(after, before);
}

TEST(SaveFolder, LatestFileMustHoldANumber) {
  const TestSave save;
  fs::create_directory(save.path());
  const std::string latest = save.path("latest_checkpointed_iteration.txt");
  for (const char* text :
       {"", "\n", "release", "-5", "+5", "1 2", "12x", " 12", "99999999999999999999", "1.5"}) {
    put_file(latest, text);
    EXPECT_THAT(message_of<CheckpointDamage>([&] { latest_iteration(save.path()); }),
                AllOf(HasSubstr(latest), HasSubstr(std::string("\"") + text + "\"")));
  }
  for (const char* text : {"12", "12\n", "0000012 \r\n"}) {
    put_file(latest, text);
    EXPECT_EQ(latest_iteration(save.path()), 12) << text;
  }
  fs::remove(latest);
  fs::create_directory(latest);
  EXPECT_THROW(latest_iteration(save.path()), CheckpointDamage);
}

TEST(SaveFolder, DamagedEpochFileIsAUsageError) {
  const TestSave save;
  fs::create_directory(save.path());
  put_file(save.path("lock"), "");
  for (const char* text : {"", "many", "-3 x", "3x"}) {
    put_file(save.path("epoch"), text);
    const auto before = tree(save.path());
    EXPECT_THAT(message_of<UsageError>([&] { SaveFolder folder(save.path()); }),
                AllOf(HasSubstr(save.path("epoch")), HasSubstr("remove that file")));
    EXPECT_EQ(tree(save.path()), before);
  }
  put_file(save.path("epoch"), "41");
  EXPECT_EQ(SaveFolder(save.path()).epoch(), 42);
}

TEST(SaveFolder, AFileInPlaceOfAFolderIsNamed) {
  const TestSave save;
  put_file(save.path(), "");
  EXPECT_THAT(message_of<UsageError>([&] { SaveFolder folder(save.path()); }),
              HasSubstr(save.path()));
  EXPECT_THAT(message_of<UsageError>([&] { SaveFolder folder(save.path("deeper")); }),
              HasSubstr(save.path("deeper")));
  EXPECT_THAT(message_of<UsageError>([&] { list_checkpoints(save.path()); }),
              HasSubstr(save.path()));
}

TEST(SaveFolder, AFolderThatCannotBeDeletedIsTriedAgain) {
  const TestSave save;
  SaveFolder folder(save.path());
  for (const int64_t iteration : {10, 20, 30}) save_checkpoint(folder, iteration, "x");
  // A folder with no permissions does not stop root; a failing system call does.
  testing::internal::CaptureStderr();
  fail_removal(EBUSY);
  EXPECT_THAT(folder.retire({.keep_last = 2}), ElementsAre(10));
  folder.abandon(folder.begin(40).empty() ? 0 : 40);
  fail_removal(0);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr("cannot remove " + save.path("iter_0000010.deleting")),
                    HasSubstr("cannot remove " + save.path("iter_0000040.writing.1"))));
  EXPECT_TRUE(fs::exists(save.path("iter_0000010.deleting")));
  EXPECT_THAT(folder.retire({.keep_last = 2}), ElementsAre());
  EXPECT_FALSE(fs::exists(save.path("iter_0000010.deleting")));
}

}  // namespace
}  // namespace phalanx
