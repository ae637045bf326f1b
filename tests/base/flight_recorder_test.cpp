// The ring of a flight recorder: what is kept, what is refused, and many threads at once.
#include "kernels/base/flight_recorder.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <thread>

#include "kernels/base/error.h"
#include "kernels/base/trace.h"

namespace phalanx {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr size_t kOpen = 32, kHistory = 224;  // of flight_recorder.cpp

std::string text(const auto& field) {
  return {field.data()};
}

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class FlightRecorderTest : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }

  /// What another process would read now.
  FlightRecord written(FlightRecorder& recorder) const {
    recorder.heartbeat();
    return read_flight_record(path_);
  }

  const std::string path_ = testing::TempDir() + "/flight_" + std::to_string(getpid());
  const FlightOwner owner_{.rank = 5, .world_size = 8, .node = "node3"};
};

TEST_F(FlightRecorderTest, TellsOwnerProcessAndTimes) {
  const int64_t before = nanoseconds_now();
  FlightRecorder recorder(path_, owner_);
  recorder.begin_step(12);
  const FlightRecord record = written(recorder);
  EXPECT_EQ(record.owner.rank, 5);
  EXPECT_EQ(record.owner.world_size, 8);
  EXPECT_EQ(record.owner.node, "node3");
  EXPECT_EQ(record.process, getpid());
  EXPECT_EQ(record.step, 12);
  EXPECT_FALSE(record.ended);
  EXPECT_GE(record.started_ns, before);
  EXPECT_GE(record.heartbeat_ns, record.started_ns);
  // Progress is exact to the tick of the coarse clock.
  EXPECT_GE(record.progress_ns, before - 20'000'000);
  EXPECT_LE(record.progress_ns, nanoseconds_now());
}

TEST_F(FlightRecorderTest, AnEntryIsOpenAndThenHistory) {
  FlightRecorder recorder(path_, owner_);
  recorder.begin_step(3);
  {
    const FlightRange range(flight_entry(FlightKind::file, "writing", "/save/shard_00005.h5"));
    const FlightRecord record = written(recorder);
    ASSERT_EQ(record.open.size(), 1U);
    EXPECT_EQ(record.open[0].kind, FlightKind::file);
    EXPECT_EQ(text(record.open[0].what), "writing");
    EXPECT_EQ(text(record.open[0].where), "/save/shard_00005.h5");
    EXPECT_EQ(record.open[0].step, 3);
    EXPECT_EQ(record.open[0].end_ns, 0);
    EXPECT_TRUE(record.history.empty());
  }
  const FlightRecord record = written(recorder);
  EXPECT_TRUE(record.open.empty());
  ASSERT_EQ(record.history.size(), 1U);
  EXPECT_GE(record.history[0].end_ns, record.history[0].begin_ns);
}

TEST_F(FlightRecorderTest, WhatIsNotPublishedYetIsInTheProcessOwnView) {
  FlightRecorder recorder(path_, owner_);
  const FlightRange range(flight_entry(FlightKind::phase, "evaluate"));
  EXPECT_TRUE(read_flight_record(path_).open.empty());
  EXPECT_EQ(recorder.record().open.size(), 1U);
}

TEST_F(FlightRecorderTest, TheHistoryKeepsTheNewest) {
  FlightRecorder recorder(path_, owner_);
  constexpr int64_t kEntries = 2 * kHistory + 17;
  for (int64_t i = 1; i <= kEntries; ++i)
    const FlightRange range(FlightKind::collective, "all_reduce", "world", i, -1);
  const FlightRecord record = written(recorder);
  ASSERT_EQ(record.history.size(), kHistory);
  for (size_t i = 0; i < kHistory; ++i)
    EXPECT_EQ(record.history[i].sequence, kEntries - static_cast<int64_t>(kHistory - 1 - i));
}

TEST_F(FlightRecorderTest, MoreAtTheSameTimeThanThereIsRoomForAreNotKept) {
  FlightRecorder recorder(path_, owner_);
  std::vector<int> slots;
  for (size_t i = 0; i < kOpen; ++i)
    slots.push_back(recorder.begin(flight_entry(FlightKind::phase, "work")));
  EXPECT_EQ(std::set<int>(slots.begin(), slots.end()).size(), kOpen);
  EXPECT_EQ(recorder.begin(flight_entry(FlightKind::phase, "one too many")), -1);
  recorder.end(-1);
  EXPECT_EQ(recorder.record().open.size(), kOpen);
  recorder.end(slots[7]);
  EXPECT_EQ(recorder.begin(flight_entry(FlightKind::phase, "again")), slots[7]);
  EXPECT_EQ(text(recorder.record().open.back().what), "again");
}

TEST_F(FlightRecorderTest, ManyThreadsAtOnce) {
  FlightRecorder recorder(path_, owner_);
  constexpr int kThreads = 8, kRanges = 2000;
  std::atomic<bool> done = false;
  std::thread reader([&] {
    while (!done)
      for (const FlightEntry& entry : written(recorder).history) {
        // An entry may be torn while it is written, but its texts end.
        EXPECT_LT(text(entry.what).size(), entry.what.size());
        EXPECT_LT(text(entry.where).size(), entry.where.size());
      }
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([t] {
      for (int i = 0; i < kRanges; ++i)
        const FlightRange range(
            flight_entry(FlightKind::file, std::to_string(t), "file of " + std::to_string(t)));
    });
  for (std::thread& thread : threads) thread.join();
  done = true;
  reader.join();
  const FlightRecord record = written(recorder);
  EXPECT_TRUE(record.open.empty());
  std::set<int64_t> numbers;
  for (const FlightEntry& entry : record.history) {
    numbers.insert(entry.number);
    EXPECT_EQ(text(entry.where), "file of " + text(entry.what));
  }
  EXPECT_EQ(numbers.size(), record.history.size()) << "no number twice";
  EXPECT_EQ(*numbers.rbegin(), kThreads * kRanges);
}

TEST_F(FlightRecorderTest, CountsPerGroupCollectivesAndExchangesApart) {
  FlightRecorder recorder(path_, owner_);
  { const FlightRange range(FlightKind::collective, "all_reduce", "dp_cp", 7, -1); }
  { const FlightRange range(FlightKind::wait, "all_reduce", "dp_cp", 6, -1); }
  { const FlightRange range(FlightKind::exchange, "exchange", "pp", 3, 1); }
  { const FlightRange range(FlightKind::exchange_wait, "exchange", "pp", 2, 1); }
  const FlightRecord record = written(recorder);
  ASSERT_EQ(record.groups.size(), 2U);
  EXPECT_EQ(text(record.groups[0].name), "dp_cp");
  EXPECT_EQ(record.groups[0].collectives, 7) << "waiting for #6 does not take #7 back";
  EXPECT_EQ(record.groups[0].exchanges, 0);
  EXPECT_EQ(record.groups[1].exchanges, 3);
  EXPECT_EQ(record.groups[1].collectives, 0);
  EXPECT_EQ(record.history[2].peer, 1);
}

TEST_F(FlightRecorderTest, OfALongPathTheEndIsKept) {
  FlightRecorder recorder(path_, owner_);
  const FlightRange range(
      flight_entry(FlightKind::file, "reading", std::string(300, 'x') + "/shard_00004.h5"));
  const std::string where = text(recorder.record().open[0].where);
  EXPECT_EQ(where.size(), 99U);
  EXPECT_THAT(where, testing::EndsWith("/shard_00004.h5"));
}

TEST_F(FlightRecorderTest, PhasesOfProfilesAreEntriesAndOpsAreProgress) {
  FlightRecorder recorder(path_, owner_);
  const int64_t before = recorder.progress_ns();
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  { const TraceRange op("matmul", TraceLane::op); }
  EXPECT_GT(recorder.progress_ns(), before);
  EXPECT_TRUE(recorder.record().history.empty());
  const TraceRange phase("gradient sync", TraceLane::phase);
  EXPECT_EQ(text(recorder.record().open[0].what), "gradient sync");
}

TEST_F(FlightRecorderTest, SmallPartsAreToldNowAndThen) {
  FlightRecorder recorder(path_, owner_);
  const int64_t before = recorder.progress_ns();
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  flight_progress_of(1);
  EXPECT_EQ(recorder.progress_ns(), before);
  flight_progress_of(65536);
  EXPECT_GT(recorder.progress_ns(), before);
}

TEST_F(FlightRecorderTest, ASecondOneIsRefusedAndTheFirstGoesOn) {
  FlightRecorder recorder(path_, owner_);
  EXPECT_THAT([&] { const FlightRecorder second(path_ + ".second", owner_); },
              testing::ThrowsMessage<Error>(HasSubstr("has a flight recorder already")));
  std::filesystem::remove(path_ + ".second");
  EXPECT_EQ(FlightRecorder::current(), &recorder);
}

TEST_F(FlightRecorderTest, AProcessThatShouldBeGoneWritesIntoNothingOthersRead) {
  FlightRecorder recorder(path_, owner_);
  std::filesystem::remove(path_);
  std::ofstream(path_) << "of a later start";
  recorder.heartbeat();
  EXPECT_EQ(contents(path_), "of a later start");
}

TEST_F(FlightRecorderTest, EndsInOrder) {
  {
    FlightRecorder recorder(path_, owner_);
    EXPECT_FALSE(read_flight_record(path_).ended);
  }
  EXPECT_TRUE(read_flight_record(path_).ended);
  EXPECT_EQ(FlightRecorder::current(), nullptr);
  const FlightRange range(flight_entry(FlightKind::phase, "after the end"));
  flight_progress();
  flight_step(4);
  EXPECT_TRUE(read_flight_record(path_).open.empty());
}

TEST_F(FlightRecorderTest, ARangeMayOutliveTheRecorder) {
  auto recorder = std::make_unique<FlightRecorder>(path_, owner_);
  const FlightRange range(flight_entry(FlightKind::phase, "of a thread that was let go of"));
  recorder.reset();
}

TEST_F(FlightRecorderTest, OtherFilesAreRefused) {
  const auto reads = [&] { return read_flight_record(path_); };
  EXPECT_THAT(reads, testing::ThrowsMessage<Error>(HasSubstr("cannot read")));
  { const FlightRecorder recorder(path_, owner_); }
  const std::string whole = contents(path_);
  ASSERT_NO_THROW(read_flight_record(path_));
  const auto with = [&](const std::string& bytes) {
    std::ofstream(path_, std::ios::binary) << bytes;
    EXPECT_THAT(reads, testing::ThrowsMessage<Error>(HasSubstr("no flight record")))
        << bytes.size();
  };
  with("");
  with(whole.substr(0, 8));
  with(whole.substr(0, whole.size() - 1));
  with(whole + "x");
  std::string other_version = whole;
  other_version[7] = '0';
  with(other_version);
}

TEST_F(FlightRecorderTest, TornTextsEnd) {
  { const FlightRecorder recorder(path_, owner_); }
  // Every byte is as bad as it can be behind the head.
  std::string bytes = contents(path_);
  constexpr size_t kHead = 8 + 4 + 4 + 8 + 8 + 64;
  std::fill(bytes.begin() + kHead, bytes.end(), '\x7f');
  std::ofstream(path_, std::ios::binary) << bytes;
  const FlightRecord record = read_flight_record(path_);
  EXPECT_EQ(record.open.size(), kOpen);
  EXPECT_EQ(record.history.size(), kHistory);
  for (const FlightEntry& entry : record.history) EXPECT_EQ(text(entry.where).size(), 99U);
  for (const FlightGroup& group : record.groups) EXPECT_EQ(text(group.name).size(), 15U);
}

TEST_F(FlightRecorderTest, CannotBeMadeWhereThereIsNoFolder) {
  EXPECT_THAT([] { const FlightRecorder recorder("/nowhere/rank.flight", {}); },
              testing::ThrowsMessage<Error>(HasSubstr("/nowhere/rank.flight")));
  EXPECT_EQ(FlightRecorder::current(), nullptr);
}

}  // namespace
}  // namespace phalanx
