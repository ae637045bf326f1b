// Records by hand to figures: spreads, efficiencies, time, bytes, states, and the CSV.
#include "cluster/study_results.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "cluster/report_table.h"
#include "core/run_files.h"
#include "tests/cluster/study_fixture.h"
#include "tests/train/tiny_run.h"

namespace phalanx::test {
namespace {

using Json = nlohmann::json;
using ::testing::HasSubstr;

Json step_record(int64_t step, double rate) {
  return {{"iteration", step},
          {"lm_loss", 5.0},
          {"tokens_per_second", rate},
          {"step_ms", 100.0},
          {"mfu", 0.25},
          {"seconds", {{"step", 0.1}, {"compute", 0.05}, {"data", 0.004}, {"save", 0.006}}},
          {"communication",
           {{"dp_cp", {{"all_gather", {{"calls", 1}, {"bytes", 40}}}, {"wait_seconds", 0.01}}},
            {"pp", {{"exchange", {{"calls", 1}, {"bytes", 7}}}, {"wait_seconds", 0.03}}}}}};
}

StudyPoint point_of(const std::string& name, int64_t nodes) {
  return {.name = name, .nodes = nodes, .ranks = 2 * nodes, .train_iters = 8};
}

PointResult finished(const std::string& name, int64_t nodes, double rate) {
  PointResult result{.point = point_of(name, nodes), .state = PointState::done};
  result.measures.tokens_per_second = Spread{rate, rate, rate};
  return result;
}

TEST(SpreadOf, InterpolatesBetweenNeighbours) {
  const Spread spread = spread_of({5, 1, 3, 2, 4});
  EXPECT_DOUBLE_EQ(spread.median, 3);
  EXPECT_DOUBLE_EQ(spread.p10, 1.4);
  EXPECT_DOUBLE_EQ(spread.p90, 4.6);
  EXPECT_DOUBLE_EQ(spread_of({7}).p10, 7);
}

TEST(Efficiency, IsThroughputPerRankAgainstTheFastestOnTheFewestNodes) {
  std::vector<PointResult> results{finished("two", 2, 150), finished("slow", 1, 60),
                                   finished("fast", 1, 100), finished("four", 4, 320)};
  results.push_back({.point = point_of("failed", 1), .state = PointState::failed});
  EXPECT_EQ(set_efficiencies(results), "fast");
  EXPECT_DOUBLE_EQ(*results[0].efficiency, 0.75);  // 1.5 times as fast on twice the ranks
  EXPECT_DOUBLE_EQ(*results[1].efficiency, 0.6);
  EXPECT_DOUBLE_EQ(*results[2].efficiency, 1);
  EXPECT_DOUBLE_EQ(*results[3].efficiency, 0.8);
  EXPECT_FALSE(results[4].efficiency);
  std::vector<PointResult> none{results[4]};
  EXPECT_EQ(set_efficiencies(none), "");
}

TEST(Measures, LeaveOutTheWarmUpAndOlderStarts) {
  const std::string folder = fresh_folder("measures");
  std::vector<Json> records;
  for (int64_t step = 1; step <= 5; ++step) records.push_back(step_record(step, 1));
  records.push_back({{"event", "run"}, {"memory_bytes_plan", 1000}, {"time", 10.5}});
  for (int64_t step = 1; step <= 8; ++step)
    records.push_back(step_record(step, static_cast<double>(step <= kWarmupSteps ? 9999 : step)));
  records.push_back({{"iteration", 8}, {"predicted_bubble", 0.2}, {"measured_bubble", 0.3}});
  records.push_back({{"event", "end"}, {"memory_peak_bytes", 1500}, {"time", 20.5}});
  append_records(metrics_path(folder), records);
  const StudyForecast forecast{
      .memory_bytes = 900,
      .bytes = {{"dp_cp", Collective::all_gather, 40}, {"ep", Collective::all_to_all, {}}}};
  const PointMeasures measures = read_measures(folder, forecast);
  EXPECT_EQ(measures.last_step, 8);
  EXPECT_EQ(measures.steps, 5);
  EXPECT_DOUBLE_EQ(measures.tokens_per_second->median, 6);  // of 4 5 6 7 8
  EXPECT_DOUBLE_EQ(*measures.mfu, 0.25);
  EXPECT_NEAR(measures.split.step, 0.1, 1e-12);
  EXPECT_NEAR(*measures.split.compute, 0.05, 1e-12);
  EXPECT_NEAR(measures.split.exposed.at("dp_cp"), 0.01, 1e-12);
  EXPECT_EQ(measures.split.exposed.count("pp"), 0U) << "that is the bubble";
  EXPECT_NEAR(*measures.split.bubble, 0.03, 1e-12);
  EXPECT_NEAR(*measures.split.data, 0.004, 1e-12);
  EXPECT_NEAR(*measures.split.save, 0.006, 1e-12);
  EXPECT_DOUBLE_EQ(*measures.measured_bubble, 0.3);
  EXPECT_EQ(measures.memory_plan, 1000);
  EXPECT_EQ(measures.memory_peak, 1500);
  ASSERT_EQ(measures.bytes.size(), 3U);
  EXPECT_EQ(measures.bytes[0].measured, 40);
  EXPECT_EQ(measures.bytes[0].predicted, 40);
  EXPECT_EQ(measures.bytes[1].measured, 0) << "forecast, but nothing moved";
  EXPECT_EQ(measures.bytes[1].predicted, std::nullopt);
  EXPECT_EQ(measures.bytes[2].group, "pp");
  EXPECT_EQ(measures.bytes[2].predicted, std::nullopt) << "moved, but no formula speaks of it";
}

// As runs wrote them before there was a time split, and as a crash leaves them.
TEST(Measures, OfOlderAndCutRecords) {
  const std::string folder = fresh_folder("older");
  std::vector<Json> records;
  for (int64_t step = 1; step <= 6; ++step) {
    records.push_back(step_record(step, 10));
    records.back().erase("seconds");
  }
  append_records(metrics_path(folder), records);
  std::ofstream(metrics_path(folder), std::ios::app) << R"({"iteration": 7, "lm_lo)";
  const PointMeasures measures = read_measures(folder, {.memory_bytes = 900});
  EXPECT_EQ(measures.steps, 3);
  EXPECT_NEAR(measures.split.step, 0.1, 1e-12);
  EXPECT_NEAR(*measures.split.compute, 0.06, 1e-12) << "what the waits leave";
  EXPECT_FALSE(measures.split.data);
  EXPECT_EQ(measures.memory_plan, 900) << "the study's own";
  const PointMeasures nothing = read_measures(fresh_folder("nothing"), {});
  EXPECT_EQ(nothing.steps, 0);
  EXPECT_FALSE(nothing.tokens_per_second);
}

class PointStates : public testing::Test {
 protected:
  PointResult result(const PointJob& job) { return point_result(study_, point_, job); }
  void train_until(int64_t step) {
    std::vector<Json> records;
    for (int64_t i = 1; i <= step; ++i) records.push_back(step_record(i, 10));
    append_records(metrics_path(study_.run_folder(point_)), records);
  }
  static PointJob job(const std::string& state) {
    return {.id = "7", .slurm = SlurmJob{.id = "7", .state = state, .reason = "None"}};
  }

  Study study_{.folder = fresh_folder("states")};
  StudyPoint point_ = point_of("nodes-001", 1);
};

TEST_F(PointStates, FollowJobAndRecords) {
  EXPECT_EQ(result({}).state, PointState::waiting);
  EXPECT_EQ(result(job("PENDING")).state, PointState::queued);
  EXPECT_EQ(result(job("RUNNING")).state, PointState::running);
  train_until(8);
  EXPECT_EQ(result(job("COMPLETING")).state, PointState::running) << "it still writes";
  EXPECT_EQ(result(job("COMPLETED")).state, PointState::done);
  EXPECT_EQ(result({.id = "7"}).state, PointState::done) << "Slurm has forgotten the job";
  EXPECT_EQ(result(job("TIMEOUT")).state, PointState::done) << "all steps are there";
}

TEST_F(PointStates, FailedSaysWhyAndWhere) {
  train_until(5);
  append_records(ledger_path(study_.run_folder(point_)),
                 {{{"event", "attempt_begin"}, {"nodes", {"node3"}}},
                  {{"event", "attempt_end"}, {"exit_code", 137}, {"text", "rank 0: killed"}}});
  const PointResult failed = result(job("FAILED"));
  EXPECT_EQ(failed.state, PointState::failed);
  EXPECT_THAT(failed.cause, HasSubstr("job 7 ended after step 5 of 8 (FAILED"));
  EXPECT_THAT(failed.cause, HasSubstr("exit code 137: rank 0: killed"));
  EXPECT_EQ(failed.log, study_.run_folder(point_) + "/slurm-7.log");
  EXPECT_THAT(failed.measures.nodes, testing::ElementsAre("node3"));
  EXPECT_EQ(result({.id = "7"}).state, PointState::failed) << "Slurm has forgotten the job";
}

TEST_F(PointStates, ImpossibleOnesKeepTheirReasons) {
  point_.problems = {"one", "two"};
  EXPECT_EQ(result({}).state, PointState::impossible);
  EXPECT_EQ(result({}).cause, "one\ntwo");
}

TEST(Csv, QuotesWhatNeedsIt) {
  EXPECT_EQ(csv_line({"a", "", "b c", "d,e", "say \"so\"", "two\nlines"}),
            "a,,b c,\"d,e\",\"say \"\"so\"\"\",\"two\nlines\"\r\n");
}

TEST(Csv, HasAHeaderAndALineForEveryPoint) {
  std::vector<PointResult> results{finished("one", 1, 100), finished("two", 2, 150)};
  results[1].measures.bytes = {{"dp", "all_reduce", 8, 8}};
  set_efficiencies(results);
  const std::string csv = report_csv(results);
  EXPECT_EQ(std::ranges::count(csv, '\n'), 3);
  EXPECT_THAT(csv, testing::StartsWith("point,nodes,ranks,"));
  EXPECT_THAT(csv, HasSubstr(",bytes_dp_all_reduce_measured,bytes_dp_all_reduce_predicted,"));
  EXPECT_THAT(csv, HasSubstr(",150.0,150.0,150.0,37.5,75.0,"));  // spread, per rank, efficiency
}

}  // namespace
}  // namespace phalanx::test
