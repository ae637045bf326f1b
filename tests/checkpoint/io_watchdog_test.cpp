// IoWatchdog: slow operations are named, quick ones are not.
#include "core/checkpoint/io_watchdog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <ctime>

namespace phalanx {
namespace {

using std::chrono::milliseconds;
using testing::ContainsRegex;
using testing::ElementsAre;
using testing::IsEmpty;
using Clock = std::chrono::steady_clock;

/// Collects reports from the watchdog's thread.
class Reports {
 public:
  std::function<void(const std::string&)> collector() {
    return [this](const std::string& text) {
      const std::lock_guard lock(mutex_);
      texts_.push_back(text);
      changed_.notify_all();
    };
  }
  /// Waits until there are `count`, or 20 s.
  std::vector<std::string> wait_for(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(20), [&] { return texts_.size() >= count; });
    return texts_;
  }
  std::vector<std::string> now() { return wait_for(0); }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> texts_;
};

TEST(IoWatchdog, NamesFileVerbAndSecondsAgainAndAgain) {
  Reports reports;
  IoWatchdog watchdog("rank 3", milliseconds(100), reports.collector());
  std::this_thread::sleep_for(milliseconds(50));  // it sleeps now and must be woken
  const auto begin = Clock::now();
  std::vector<std::string> texts;
  {
    const IoWatchdog::Watch watch(watchdog, "writing", "SAVE/shard_00003.h5");
    texts = reports.wait_for(3);
    EXPECT_GE(Clock::now() - begin, milliseconds(300));
  }
  ASSERT_GE(texts.size(), 3U);
  for (const std::string& text : texts)
    EXPECT_THAT(text, ContainsRegex("^rank 3 has been writing SAVE/shard_00003.h5 for [0-9.]+ s$"));
  const auto seconds = [&](size_t i) {
    return std::stod(texts[i].substr(texts[i].find("for ") + 4));
  };
  EXPECT_GE(seconds(0), 0.1);
  EXPECT_GE(seconds(1), 0.2);
  EXPECT_GE(seconds(2), 0.3);
  EXPECT_LT(seconds(0), 10);
  const size_t said = reports.now().size();
  std::this_thread::sleep_for(milliseconds(150));
  EXPECT_EQ(reports.now().size(), said);  // it is over
}

TEST(IoWatchdog, IsSilentAboutQuickOperations) {
  Reports reports;
  {
    IoWatchdog watchdog("rank 0", milliseconds(400), reports.collector());
    const auto end = Clock::now() + milliseconds(600);  // together longer than the limit
    while (Clock::now() < end) {
      const IoWatchdog::Watch watch(watchdog, "reading", "file");
      std::this_thread::sleep_for(milliseconds(5));
    }
  }
  EXPECT_THAT(reports.now(), IsEmpty());
}

TEST(IoWatchdog, WatchesSeveralAtATime) {
  Reports reports;
  IoWatchdog watchdog("rank 1", milliseconds(50), reports.collector());
  {
    const IoWatchdog::Watch slow(watchdog, "syncing", "a");
    { const IoWatchdog::Watch quick(watchdog, "reading", "b"); }
    std::thread other([&] {
      const IoWatchdog::Watch watch(watchdog, "writing", "c");
      reports.wait_for(4);
    });
    other.join();
  }
  int64_t syncing = 0;
  int64_t writing = 0;
  for (const std::string& text : reports.now()) {
    syncing += text.starts_with("rank 1 has been syncing a for ");
    writing += text.starts_with("rank 1 has been writing c for ");
  }
  EXPECT_GE(syncing, 1);
  EXPECT_GE(writing, 1);
  EXPECT_EQ(syncing + writing, static_cast<int64_t>(reports.now().size()));
}

TEST(IoWatchdog, LimitOfZeroWatchesNothing) {
  Reports reports;
  IoWatchdog watchdog("rank 0", milliseconds(0), reports.collector());
  const IoWatchdog::Watch watch(watchdog, "writing", "file");
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_THAT(reports.now(), IsEmpty());
}

TEST(IoWatchdog, EndsAtOnceAndSleepsMeanwhile) {
  const auto begin = Clock::now();
  const std::clock_t work = std::clock();
  {
    IoWatchdog watchdog("rank 0", std::chrono::hours(1), [](const std::string&) {});
    const IoWatchdog::Watch watch(watchdog, "writing", "file");
    std::this_thread::sleep_for(milliseconds(300));
  }
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(10));
  // A thread that looked at the clock all the time would have worked for up to 0.3 s.
  EXPECT_LT(static_cast<double>(std::clock() - work) / CLOCKS_PER_SEC, 0.03);
}

}  // namespace
}  // namespace phalanx
