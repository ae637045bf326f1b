// Faults on purpose: the right passage on the right rank, and nothing else.
#include "core/checkpoint/fault_hook.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <thread>

#include "kernels/base/error.h"
#include "tests/checkpoint/kill_point.h"
#include "tests/checkpoint/save_tree.h"

namespace phalanx {
namespace {

using testing::AllOf;
using testing::HasSubstr;

/// Runs `work` in a child whose PHALANX_FAULT is `value`.
ChildEnd with_fault(const char* value, const std::function<void()>& work) {
  return in_child([&] {
    setenv("PHALANX_FAULT", value, 1);
    work();
  });
}

void pass(std::string_view moment, int rank, int times) {
  for (int i = 0; i < times; ++i) fault_moment(moment, rank);
}

TEST(FaultHook, DoesNothingWithoutTheVariable) {
  EXPECT_EQ(in_child([] { pass("step", 0, 1000); }).signal, 0);
}

TEST(FaultHook, KillsAtThePassage) {
  const ChildEnd before = with_fault("kill:shard:3", [] {
    pass("shard", 0, 2);
    pass("step", 0, 10);
  });
  EXPECT_EQ(before.signal, 0);
  EXPECT_EQ(before.status, 0);
  const ChildEnd after = with_fault("kill:shard:3", [] {
    pass("shard", 0, 2);
    pass("step", 0, 10);
    pass("shard", 7, 1);  // any rank counts
  });
  EXPECT_EQ(after.signal, SIGKILL);
}

TEST(FaultHook, KillsOnItsRankOnly) {
  const auto others = [] {
    pass("commit", 0, 5);
    pass("commit", 2, 5);
  };
  EXPECT_EQ(with_fault("kill:commit:1:1", others).signal, 0);
  EXPECT_EQ(with_fault("kill:commit:2:1",
                       [&] {
                         others();
                         pass("commit", 1, 1);
                       })
                .signal,
            0);
  EXPECT_EQ(with_fault("kill:commit:2:1",
                       [&] {
                         others();
                         pass("commit", 1, 2);
                       })
                .signal,
            SIGKILL);
}

TEST(FaultHook, TakesSeveralFaults) {
  EXPECT_EQ(with_fault("kill:latest:2,kill:retire:1:3",
                       [] {
                         pass("latest", 0, 1);
                         pass("retire", 2, 9);
                       })
                .signal,
            0);
  EXPECT_EQ(with_fault("kill:latest:2,kill:retire:1:3", [] { pass("retire", 3, 1); }).signal,
            SIGKILL);
  EXPECT_EQ(with_fault("kill:latest:2,kill:retire:1:3", [] { pass("latest", 0, 2); }).signal,
            SIGKILL);
}

TEST(FaultHook, CountsThePassagesOfAllThreads) {
  const auto pass_in_threads = [](int times) {
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) threads.emplace_back(pass, "shard", i, times);
    for (std::thread& thread : threads) thread.join();
  };
  EXPECT_EQ(with_fault("kill:shard:4001", [&] { pass_in_threads(1000); }).signal, 0);
  EXPECT_EQ(with_fault("kill:shard:4000", [&] { pass_in_threads(1000); }).signal, SIGKILL);
}

TEST(FaultHook, HangSleepsOnce) {
  const ChildEnd end = with_fault("hang:snapshot:2:1", [] {
    setenv("PHALANX_FAULT_SECONDS", "1", 1);
    const auto begin = std::chrono::steady_clock::now();
    pass("snapshot", 1, 1);
    check(std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(900), "too early");
    pass("snapshot", 1, 1);
    check(std::chrono::steady_clock::now() - begin >= std::chrono::seconds(1), "no sleep");
    pass("snapshot", 1, 20);
    check(std::chrono::steady_clock::now() - begin < std::chrono::seconds(15), "sleeps again");
  });
  EXPECT_EQ(end.signal, 0);
  EXPECT_EQ(end.status, 0);
}

TEST(FaultHook, SlowSleepsEveryTimeFromItsPassageOn) {
  const ChildEnd end = with_fault("slow:step:3:1", [] {
    setenv("PHALANX_FAULT_SECONDS", "0.1", 1);
    const auto passing = [](int times) {
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < times; ++i) {
        fault_slowness("step", 0);
        fault_slowness("step", 1);
        fault_moment("step", 1);  // is for others
      }
      return std::chrono::steady_clock::now() - begin;
    };
    check(passing(2) < std::chrono::milliseconds(90), "too early");
    check(passing(4) >= std::chrono::milliseconds(400), "not every time");
  });
  EXPECT_EQ(end.signal, 0);
  EXPECT_EQ(end.status, 0);
}

TEST(FaultHook, MalformedValuesAreNamed) {
  for (const char* value :
       {"", "kill", "kill:shard", "stop:shard:1", "kill:shards:1", "kill:shard:0", "kill:shard:-1",
        "kill:shard:x", "kill:shard:1:", "kill:shard:1:-1", "kill:shard:1:0:0", "kill:shard:1,",
        "kill:shard:1 ", "slow:shard:1", "kill:shard:99999999999999999999"}) {
    const ChildEnd end = with_fault(value, [&] {
      for (int i = 0; i < 2; ++i) {
        const std::string message = message_of<UsageError>([] { fault_moment("step", 0); });
        const std::string begin = std::string("PHALANX_FAULT=") + value + ": ";
        check(message.starts_with(begin), "expected ", begin, " not ", message);
        check(message.find("ACTION:MOMENT:COUNT[:RANK]") != std::string::npos, message);
      }
    });
    EXPECT_EQ(end.status, 0) << value;
  }
  const ChildEnd seconds = with_fault("hang:step:1", [] {
    setenv("PHALANX_FAULT_SECONDS", "soon", 1);
    check(message_of<UsageError>([] { fault_moment("step", 0); }).find("\"soon\"") !=
              std::string::npos,
          "not named");
  });
  EXPECT_EQ(seconds.status, 0);
}

TEST(FaultHook, ASaveFolderPassesItsMoments) {
  const TestSave save;
  const auto save_twice = [&] {
    SaveFolder folder(save.path());
    save_checkpoint(folder, 10, "ten");
    save_checkpoint(folder, 20, "twenty");
    folder.retire({.keep_last = 1});
  };
  EXPECT_EQ(with_fault("kill:commit:2:0", save_twice).signal, SIGKILL);
  EXPECT_EQ(iterations(save.path()), std::vector<int64_t>{10});
  EXPECT_EQ(with_fault("kill:latest:2:0", save_twice).signal, SIGKILL);
  EXPECT_EQ(iterations(save.path()), (std::vector<int64_t>{20, 10}));
  EXPECT_EQ(latest_iteration(save.path()), 10);
  EXPECT_EQ(with_fault("kill:retire:1:0", save_twice).signal, SIGKILL);
  EXPECT_EQ(iterations(save.path()), std::vector<int64_t>{20});
  EXPECT_TRUE(std::filesystem::exists(save.path("iter_0000010.deleting")));
  EXPECT_EQ(with_fault("kill:step:1:0", save_twice).status, 0);
  EXPECT_FALSE(std::filesystem::exists(save.path("iter_0000010.deleting")));
}

}  // namespace
}  // namespace phalanx
