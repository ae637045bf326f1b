// SaveFolder through crashes: killed before every single change it makes to a folder, and started
// on every state that such a death leaves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>

#include "core/checkpoint/save_folder.h"
#include "tests/checkpoint/kill_point.h"
#include "tests/checkpoint/save_tree.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;
using testing::AnyOf;
using testing::ElementsAre;
using testing::HasSubstr;
using Contents = std::map<int64_t, std::string>;

const Contents kBefore{{10, "ten"}, {20, "twenty"}, {30, "thirty"}};

void make_three(const std::string& save) {
  fs::remove_all(save);
  SaveFolder folder(save);
  for (const auto& [iteration, content] : kBefore) save_checkpoint(folder, iteration, content);
}

/// Names that only a save under way has.
std::vector<std::string> leftovers(const std::string& save) {
  std::vector<std::string> found;
  for (const std::string& name : names(save)) {
    for (const char* part : {".writing", ".replaced", ".deleting", ".tmp"})
      if (name.find(part) != std::string::npos) found.push_back(name);
  }
  return found;
}

/// Runs `work` again and again on three checkpoints, killed before its 1st, 2nd, ... change, until
/// it comes through. After each death, and after the next start, `judge` looks at what is there;
/// the next start must leave no leftovers and do the same work. Returns the number of deaths.
int kill_everywhere(const std::function<void(SaveFolder&)>& work,
                    const std::function<void(const Contents&)>& judge) {
  const TestSave save;
  for (int change = 1; change < 200; ++change) {
    SCOPED_TRACE(change);
    make_three(save.path());
    const ChildEnd end = in_child([&] {
      SaveFolder folder(save.path());
      kill_before_change(change);
      work(folder);
    });
    if (end.signal != SIGKILL) {
      EXPECT_EQ(end.status, 0);
      return change - 1;
    }
    SaveFolder next(save.path());
    EXPECT_THAT(leftovers(save.path()), ElementsAre());
    judge(contents(save.path()));
    EXPECT_NE(latest_iteration(save.path()), -1);
    EXPECT_NO_THROW(work(next));
    if (testing::Test::HasFailure()) return -1;
  }
  return -1;
}

TEST(SaveCrash, CommitOfANewIteration) {
  Contents after = kBefore;
  after[40] = "forty";
  const int deaths =
      kill_everywhere([](SaveFolder& folder) { save_checkpoint(folder, 40, "forty"); },
                      [&](const Contents& found) { EXPECT_THAT(found, AnyOf(kBefore, after)); });
  // mkdir; sync, rename, sync; sync, rename, sync of the latest file
  EXPECT_EQ(deaths, 7);
}

TEST(SaveCrash, CommitOverAnExistingIteration) {
  Contents after = kBefore;
  after[30] = "again";
  const int deaths =
      kill_everywhere([](SaveFolder& folder) { save_checkpoint(folder, 30, "again"); },
                      [&](const Contents& found) { EXPECT_THAT(found, AnyOf(kBefore, after)); });
  // one rename more before, one after; then two files and a folder go
  EXPECT_EQ(deaths, 12);
}

TEST(SaveCrash, Retire) {
  const int deaths = kill_everywhere([](SaveFolder& folder) { folder.retire({.keep_last = 1}); },
                                     [](const Contents& found) {
                                       EXPECT_EQ(found.at(30), "thirty");
                                       for (const auto& [iteration, content] : found)
                                         EXPECT_EQ(content, kBefore.at(iteration));
                                     });
  EXPECT_EQ(deaths, 9);  // two renames, sync, twice two files and a folder
}

TEST(SaveCrash, SetAside) {
  const Contents after{{10, "ten"}, {20, "twenty"}};
  const int deaths = kill_everywhere(
      [](SaveFolder& folder) {
        if (fs::exists(folder.path() + "/iter_0000030")) folder.set_aside_damaged(30);
      },
      [&](const Contents& found) { EXPECT_THAT(found, AnyOf(kBefore, after)); });
  EXPECT_EQ(deaths, 2);
}

/// What dead epochs 3 and 4 may leave, all at once.
void make_leftovers(const std::string& save) {
  make_three(save);
  put_file(save + "/epoch", "4 dead\n");
  fs::rename(save + "/iter_0000020", save + "/iter_0000020.replaced.3");
  fill_checkpoint(save + "/iter_0000020.writing.3", "never finished");
  fill_checkpoint(save + "/iter_0000030.replaced.4", "old");
  fs::create_directory(save + "/iter_0000050.writing.4");
  put_file(save + "/iter_0000050.writing.4/shard_00000.h5", "half");
  fill_checkpoint(save + "/iter_0000005.deleting", "garbage");
  fill_checkpoint(save + "/iter_0000005.deleting.2", "garbage");
  put_file(save + "/epoch.tmp.0123456789abcdef", "5");
  put_file(save + "/latest_checkpointed_iteration.txt.tmp.0123456789abcdef", "");
}

TEST(SaveCrash, StartTidiesUp) {
  const TestSave save;
  make_leftovers(save.path());
  testing::internal::CaptureStderr();
  const SaveFolder folder(save.path());
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("iter_0000020.replaced.3 is back"));
  EXPECT_EQ(folder.epoch(), 5);
  EXPECT_EQ(contents(save.path()), kBefore);
  EXPECT_THAT(names(save.path()),
              ElementsAre("epoch", "iter_0000010", "iter_0000020", "iter_0000030",
                          "latest_checkpointed_iteration.txt", "lock"));
}

TEST(SaveCrash, StartItselfIsKilledAnywhere) {
  const TestSave save;
  int change = 1;
  for (; change < 200; ++change) {
    SCOPED_TRACE(change);
    make_leftovers(save.path());
    const ChildEnd end = in_child([&] {
      kill_before_change(change);
      SaveFolder folder(save.path());
    });
    if (end.signal != SIGKILL) break;
    const SaveFolder folder(save.path());
    ASSERT_GE(folder.epoch(), 5);
    ASSERT_EQ(contents(save.path()), kBefore);
    ASSERT_THAT(leftovers(save.path()), ElementsAre());
  }
  EXPECT_GT(change, 20);  // 5 folders of garbage alone have 14 entries
  EXPECT_LT(change, 200);
}

TEST(SaveCrash, AReplacedOneStaysWhileItsPlaceIsNotAWholeCheckpoint) {
  const TestSave save;
  fill_checkpoint(save.path("iter_0000010.replaced.1"), "whole");
  fs::create_directory(save.path("iter_0000010"));  // by hand: no save leaves this
  const SaveFolder folder(save.path());
  EXPECT_TRUE(fs::exists(save.path("iter_0000010.replaced.1/COMMITTED")));
}

}  // namespace
}  // namespace phalanx
