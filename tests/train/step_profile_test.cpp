// --profile: which steps, what is recorded, and files that a trace viewer reads.
#include "core/train/step_profile.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "core/config.h"
#include "core/train/run_training.h"
#include "kernels/cpu/cpu_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/train/tiny_run.h"

namespace phalanx::test {
namespace {

using testing::HasSubstr;

TEST(StepRange, IsAStepOrTwoWithADash) {
  EXPECT_EQ(parse_step_range("5").first, 5);
  EXPECT_EQ(parse_step_range("5").last, 5);
  EXPECT_EQ(parse_step_range("12-340").first, 12);
  EXPECT_EQ(parse_step_range("12-340").last, 340);
  for (const char* wrong : {"", "0", "-3", "3-", "5-4", "a", "5-7x", "1-2-3", " 5", "5.0"})
    EXPECT_THROW(parse_step_range(wrong), UsageError) << wrong;
}

/// A device whose stamps come half a second apart.
class SteadyClock final : public DeviceClock {
 public:
  void mark() override { ++marks_; }
  std::vector<double> seconds() override {
    std::vector<double> seconds;
    for (int64_t mark = 0; mark < marks_; ++mark)
      seconds.push_back(0.5 * static_cast<double>(mark));
    return seconds;
  }

 private:
  int64_t marks_ = 0;
};

TEST(Trace, RecordsNestedRangesOnlyWhileStarted) {
  Trace trace;
  { const TraceRange before("before", TraceLane::op); }
  trace.start();
  {
    const TraceRange outer("outer", TraceLane::phase);
    TraceRange inner("inner", TraceLane::op);
    float data[4] = {};
    inner.add_flops(10);
    inner.add_bytes(cpu_tensor(data, {4}));
    inner.add_bytes(cpu_tensor(data, {2}));  // the same memory counts once
  }
  trace.stop();
  { const TraceRange after("after", TraceLane::op); }
  const std::vector<TraceEvent> events = trace.take();
  ASSERT_EQ(events.size(), 2U);
  EXPECT_EQ(events[0].name, "outer");
  EXPECT_EQ(events[1].name, "inner");
  EXPECT_LE(events[0].begin, events[1].begin);
  EXPECT_LE(events[1].begin, events[1].end);
  EXPECT_LE(events[1].end, events[0].end);
  EXPECT_EQ(events[1].flops, 10);
  EXPECT_EQ(events[1].bytes, 16);
  EXPECT_TRUE(trace.take().empty());
}

TEST(Trace, OpsOfADeviceHaveItsTimes) {
  Trace trace(std::make_unique<SteadyClock>());
  trace.start();
  { const TraceRange phase("phase", TraceLane::phase); }
  { const TraceRange op("op", TraceLane::op); }
  trace.stop();
  const std::vector<TraceEvent> events = trace.take();
  ASSERT_EQ(events.size(), 2U);
  EXPECT_EQ(events[0].device_end, -1);
  // Stamp 0 ties the clocks, 1 and 2 are the op's.
  EXPECT_NEAR(events[1].device_end - events[1].device_begin, 0.5, 1e-12);
  const auto json = nlohmann::json::parse(
      chrome_trace(events, {.rank = 3, .num_ranks = 8, .device = Device::cuda}));
  std::map<int, int> events_of_line;
  for (const auto& event : json["traceEvents"])
    if (event["ph"] == "X") ++events_of_line[event["tid"].get<int>()];
  EXPECT_EQ(events_of_line, (std::map<int, int>{{1, 1}, {2, 1}, {4, 1}}));
}

TEST(ProfileTable, SharesAndRates) {
  const std::string table =
      profile_table({{.name = "matmul", .lane = TraceLane::op, .begin = 0, .end = 3, .flops = 6e9},
                     {.name = "phase", .lane = TraceLane::phase, .begin = 0, .end = 9},
                     {.name = "copy", .lane = TraceLane::op, .begin = 3, .end = 4, .bytes = 5}});
  EXPECT_THAT(table,
              HasSubstr("matmul                             1      3000.000    75.0%         2.0"));
  EXPECT_THAT(
      table,
      HasSubstr(
          "copy                               1      1000.000    25.0%           -       0.0"));
  EXPECT_THAT(table, testing::Not(HasSubstr("phase")));
}

/// The trace of one rank of a run of two, as numbers of complete events by name.
std::map<std::string, int> names_in(const std::string& path) {
  std::map<std::string, int> names;
  const auto json = nlohmann::json::parse(read_file(path));
  for (const auto& event : json["traceEvents"]) {
    if (event["ph"] != "X") continue;
    EXPECT_GE(event["dur"].get<double>(), 0.0);
    EXPECT_GE(event["ts"].get<double>(), 0.0);
    ++names[event["name"]];
  }
  return names;
}

TEST(StepProfile, EveryRankWritesTheStepsThatWereAskedFor) {
  RunConfig config = tiny_run();
  config.training.run_dir = fresh_folder("profile");
  config.training.train_iters = 5;
  config.training.profile = "2-3";
  run_thread_ranks(2, [&](ThreadRank& rank) {
    const DeviceMesh mesh(config.parallel, rank.size());
    ProcessGroups groups = rank.process_groups(mesh);
    CpuBackend backend(1);
    run_training(config, "", backend, groups, mesh);
  });
  for (const char* rank : {"rank_00000", "rank_00001"}) {
    const std::string stem = config.training.run_dir + "/profile/" + rank;
    std::map<std::string, int> names = names_in(stem + ".json");
    EXPECT_EQ(names["step"], 2);
    EXPECT_EQ(names["update"], 2);
    EXPECT_EQ(names["forward and backward"], 2);
    // Two layers, four micro-batches of one sequence per rank and step.
    EXPECT_EQ(names["attention_forward"], 2 * 4 * 2);
    EXPECT_EQ(names["attention_backward"], 2 * 4 * 2);
    EXPECT_GT(names["dp_cp reduce_scatter"], 0);
    EXPECT_THAT(read_file(stem + ".txt"), HasSubstr("attention_backward"));
  }
}

TEST(StepProfile, StepsBeyondTheRunAreRefused) {
  RunConfig config = tiny_run();
  config.training.run_dir = "unused";
  config.training.profile = "11";
  EXPECT_THAT(validate(config, 1), testing::Contains(HasSubstr("the nearest is 10")));
  config.training.profile = "x";
  EXPECT_THAT(validate(config, 1), testing::Contains(HasSubstr("e.g. 5 or 5-7")));
  config.training.profile = "10";
  EXPECT_THAT(validate(config, 1), testing::IsEmpty());
}

}  // namespace
}  // namespace phalanx::test
