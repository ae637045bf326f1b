// The fence: every start has its own epoch, and of two jobs only the later one changes SAVE.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cerrno>
#include <set>
#include <thread>

#include "core/checkpoint/file_lock.h"
#include "core/checkpoint/save_folder.h"
#include "tests/checkpoint/kill_point.h"
#include "tests/checkpoint/save_tree.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(SaveFence, StartsRaceForDistinctEpochs) {
  constexpr int kStarts = 200;
  const TestSave save;
  fs::create_directory(save.path());
  int start[2];
  ASSERT_EQ(pipe(start), 0);
  std::vector<pid_t> children;
  for (const char* mine : {"/../first", "/../second"}) {
    children.push_back(fork());
    if (children.back() != 0) continue;
    close(start[1]);
    char byte = 0;
    [[maybe_unused]] const auto end = read(start[0], &byte, 1);  // waits until the parent closes
    std::ofstream epochs(save.path() + mine);
    for (int i = 0; i < kStarts; ++i) {
      epochs << SaveFolder(save.path()).epoch() << std::endl;
      // Waiting for the lock is looking again and again; one that hardly lets go keeps others out.
      std::this_thread::sleep_for(milliseconds(2));
    }
    _exit(0);
  }
  close(start[0]);
  close(start[1]);
  std::set<int64_t> seen;
  int64_t claims = 0;
  for (const pid_t child : children) waitpid(child, nullptr, 0);
  int64_t changes_of_owner = 0;
  std::map<int64_t, int> owner;
  for (const char* file : {"/../first", "/../second"}) {
    std::ifstream epochs(save.path() + file);
    for (int64_t epoch = 0; epochs >> epoch; ++claims) {
      seen.insert(epoch);
      owner[epoch] = file[4];
    }
  }
  for (int64_t epoch = 2; epoch <= 2 * kStarts; ++epoch)
    changes_of_owner += owner[epoch] != owner[epoch - 1];
  EXPECT_EQ(claims, 2 * kStarts);
  EXPECT_EQ(seen.size(), 2U * kStarts);
  EXPECT_EQ(*seen.rbegin(), 2 * kStarts);
  EXPECT_GT(changes_of_owner, 1) << "they did not run at the same time";
}

/// Each of these must throw FencedError and change nothing.
TEST(SaveFence, AnOldEpochChangesNothing) {
  const TestSave save;
  SaveFolder old(save.path());
  for (const int64_t iteration : {10, 20, 30}) save_checkpoint(old, iteration, "x");
  fill_checkpoint(old.begin(30), "unfinished");
  const SaveFolder current(save.path());
  // What the old one was writing when the new one came is gone; it may make it again before it
  // notices, and a new one may have written the same iteration.
  fill_checkpoint(save.path("iter_0000030.writing.1"), "from the past");
  fill_checkpoint(save.path("iter_0000040.writing.1"), "from the past");
  fill_checkpoint(save.path("iter_0000010.deleting"), "of the new one");
  const auto before = tree(save.path());
  const std::map<std::string, std::function<void()>> calls{
      {"check_current", [&] { old.check_current(); }},
      {"begin", [&] { old.begin(50); }},
      {"begin again", [&] { old.begin(40); }},
      {"commit", [&] { old.commit(40); }},
      {"commit over one", [&] { old.commit(30); }},
      {"commit of nothing", [&] { old.commit(60); }},
      {"set_aside_damaged", [&] { old.set_aside_damaged(30); }},
      {"retire", [&] { old.retire({.keep_last = 1}); }},
      {"retire of nothing", [&] { old.retire({.keep_last = 0}); }}};
  for (const auto& [name, call] : calls) {
    EXPECT_THAT(message_of<FencedError>(call),
                AllOf(HasSubstr(save.path()), HasSubstr("epoch 2"), HasSubstr("epoch 1"),
                      HasSubstr("process " + std::to_string(getpid()))))
        << name;
    EXPECT_EQ(tree(save.path()), before) << name;
  }
  old.abandon(40);
  EXPECT_FALSE(fs::exists(save.path("iter_0000040.writing.1")));
  EXPECT_TRUE(fs::exists(save.path("iter_0000030.writing.1")));
  EXPECT_THAT(iterations(save.path()), ElementsAre(30, 20, 10));
  EXPECT_NO_THROW(current.check_current());
}

TEST(SaveFence, TwoLiveProcessesOnlyTheLaterCommits) {
  const TestSave save;
  SaveFolder old(save.path());
  fill_checkpoint(old.begin(10), "old");
  const ChildEnd child = in_child([&] {
    SaveFolder current(save.path());
    save_checkpoint(current, 10, "current");
  });
  EXPECT_EQ(child.status, 0);
  EXPECT_THROW(old.commit(10), FencedError);
  old.abandon(10);
  EXPECT_EQ(contents(save.path()), (std::map<int64_t, std::string>{{10, "current"}}));
}

TEST(SaveFence, AnEpochFileThatIsGoneFencesOnceSomebodyElseClaims) {
  const TestSave save;
  SaveFolder folder(save.path());
  fs::remove(save.path("epoch"));
  EXPECT_NO_THROW(folder.check_current());
  // The number comes again, but not the claim.
  const SaveFolder next(save.path());
  EXPECT_EQ(next.epoch(), folder.epoch());
  EXPECT_THROW(folder.check_current(), FencedError);
  EXPECT_THROW(folder.begin(1), FencedError);
  EXPECT_NO_THROW(next.check_current());
}

TEST(SaveFence, AFolderRemovedDuringTheRunIsClaimedAnew) {
  const TestSave save;
  SaveFolder folder(save.path());
  for (const bool all : {false, true}) {
    all ? fs::remove_all(save.path()) : fs::remove(save.path("epoch"));
    save_checkpoint(folder, 10, "again");
    EXPECT_EQ(contents(save.path()), (std::map<int64_t, std::string>{{10, "again"}}));
    EXPECT_TRUE(fs::exists(save.path("epoch")));
  }
  const SaveFolder next(save.path());
  EXPECT_EQ(next.epoch(), folder.epoch() + 1);
  EXPECT_THROW(folder.check_current(), FencedError);
}

TEST(FileLock, ExcludesWithinAProcess) {
  const TestSave save;
  const std::string path = save.path() + ".lock";
  {
    const FileLock first(path);
    EXPECT_THAT(message_of<Error>([&] { FileLock second(path, milliseconds(30)); }),
                AllOf(HasSubstr("cannot lock " + path), HasSubstr("0.03 s")));
    // A failed try, which closes the file, must not have let go of the first one's lock.
    EXPECT_EQ(in_child([&] { FileLock third(path, milliseconds(30)); }).status, 1);
  }
  EXPECT_NO_THROW(FileLock(path, milliseconds(0)));
}

TEST(FileLock, WaitsForAnotherProcessAndForItsDeath) {
  const TestSave save;
  const std::string path = save.path() + ".lock";
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const FileLock lock(path);
    [[maybe_unused]] const auto written = write(ready[1], "x", 1);
    std::this_thread::sleep_for(std::chrono::seconds(30));
    _exit(0);
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  EXPECT_THROW(FileLock(path, milliseconds(20)), Error);
  std::thread killer([child] {
    std::this_thread::sleep_for(milliseconds(50));
    kill(child, SIGKILL);
  });
  EXPECT_NO_THROW(FileLock(path, std::chrono::seconds(20)));
  killer.join();
  waitpid(child, nullptr, 0);
  close(ready[0]);
  close(ready[1]);
}

TEST(FileLock, GoesOnWithoutLocksAndSaysSoOnce) {
  const TestSave save;
  const std::string errors = save.path() + ".errors";
  const ChildEnd child = in_child([&] {  // a process of its own, because it is said once
    check(freopen(errors.c_str(), "w", stderr) != nullptr, "no file for errors");
    for (const int code : {ENOLCK, EOPNOTSUPP, ENOSYS}) {
      fail_locks(code);
      SaveFolder folder(save.path());
      save_checkpoint(folder, code, "x");
    }
    fail_locks(EIO);
    SaveFolder folder(save.path());
  });
  EXPECT_EQ(child.status, 1) << "an error of the disk is not a file system without locks";
  const std::string said = read_file(errors);
  const size_t first = said.find("lock cannot be locked (No locks available)");
  EXPECT_NE(first, std::string::npos) << said;
  EXPECT_EQ(said.find("cannot be locked", first + 20), std::string::npos) << said;
  EXPECT_THAT(said, HasSubstr("cannot lock " + save.path("lock")));
  EXPECT_EQ(iterations(save.path()).size(), 3U);
  EXPECT_THAT(said, HasSubstr("Input/output error"));
}

}  // namespace
}  // namespace phalanx
