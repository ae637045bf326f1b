// Every second of a run in one account, whatever its records look like.
#include "cluster/goodput.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>

#include "core/train/ledger.h"

namespace phalanx {
namespace {

using nlohmann::json;

constexpr double kStart = 1.7e9;

/// Records of a run, written as the program writes them; times are seconds since kStart.
struct Records {
  std::vector<json> ledger;
  std::vector<json> metrics;

  void note(const char* event, double time, json fields = json::object()) {
    fields["event"] = event;
    fields["time"] = kStart + time;
    ledger.push_back(fields);
  }
  void begin(double time, int64_t step, double startup) {
    note("training_begin", time, {{"step", step}, {"startup_seconds", startup}});
    metrics.push_back({{"event", "run"}, {"time", kStart + time}, {"step", step}});
  }
  void step(double ended, int64_t iteration, double seconds, double data = 0, double save = 0) {
    metrics.push_back({{"iteration", iteration},
                       {"lm_loss", 2.5},
                       {"skipped", false},
                       {"time", kStart + ended},
                       {"seconds", {{"step", seconds}, {"data", data}, {"save", save}}}});
  }
  /// `count` steps of `seconds` without pauses.
  void steps(double begin, int64_t first, int64_t count, double seconds) {
    for (int64_t i = 0; i < count; ++i)
      step(begin + static_cast<double>(i + 1) * seconds, first + i, seconds);
  }
  void end(double time, const char* reason, double save = 0) {
    metrics.push_back({{"event", "end"}, {"time", kStart + time}, {"save_seconds", save}});
    note("training_end", time, {{"reason", reason}});
  }
  Goodput until(double now) const { return goodput(ledger, metrics, kStart + now); }
};

double sum(const Goodput& g) {
  return g.productive + g.lost + g.checkpoint + g.data + g.restart + g.waiting + g.evaluation +
         g.other;
}

double seconds_of(const std::vector<TimeByCause>& causes) {
  double seconds = 0;
  for (const TimeByCause& cause : causes) seconds += cause.seconds;
  return seconds;
}

// Times are nanoseconds inside; 1.7e9 s as a double is exact to 2.4e-7 s.
constexpr double kExact = 1e-6;
constexpr double kRounding = 1e-5;

void expect_whole(const Goodput& g) {
  EXPECT_NEAR(sum(g), g.total, kExact);
  EXPECT_NEAR(seconds_of(g.lost_by_cause), g.lost, kExact);
  EXPECT_NEAR(seconds_of(g.restart_by_cause), g.restart, kExact);
  EXPECT_NEAR(seconds_of(g.waiting_by_cause), g.waiting, kExact);
  for (const double part : {g.productive, g.lost, g.checkpoint, g.data, g.restart, g.waiting,
                            g.evaluation, g.other, g.paused})
    EXPECT_GE(part, 0);
}

TEST(Goodput, OneRunFromStartToEnd) {
  Records run;
  run.begin(10, 0, 10);        // began at 0
  run.step(15, 1, 3, 0.5);     // 2 s of building before it
  run.step(19, 2, 3, 0.5);     // 1 s between, for nothing that has a name
  run.step(24, 3, 3, 0.5, 2);  // 2 s for a save
  run.metrics.push_back({{"iteration", 3},
                         {"validation_loss", 2.0},
                         {"time", kStart + 30},
                         {"evaluation_seconds", 5}});
  run.step(34, 4, 3, 0.5, 1);  // of 1 + 1 s before it one for a save
  run.note("checkpoint", 33, {{"durable", true}, {"stall_seconds", 3}, {"durable_seconds", 4}});
  run.end(40, "done", 4);
  const Goodput g = run.until(1e6);
  expect_whole(g);
  EXPECT_NEAR(g.total, 40, kRounding);
  EXPECT_NEAR(g.productive, 4 * 2.5, kRounding);
  EXPECT_NEAR(g.data, 4 * 0.5, kRounding);
  EXPECT_NEAR(g.restart, 12, kRounding);
  EXPECT_NEAR(g.checkpoint, 2 + 1 + 4, kRounding);
  EXPECT_NEAR(g.evaluation, 5, kRounding);
  EXPECT_NEAR(g.other, 1 + 1 + 2, kRounding);
  EXPECT_EQ(g.lost, 0);
  EXPECT_EQ(g.waiting, 0);
  EXPECT_EQ(g.paused, 0) << "nobody asks how long ago it was done";
  EXPECT_EQ(g.attempts, 1);
  EXPECT_TRUE(g.no_failure_yet);
  EXPECT_NEAR(g.goodput(), 0.25, 1e-6);
}

TEST(Goodput, AKilledStartLosesWhatTheNextComputesAgain) {
  Records run;
  run.begin(5, 0, 5);
  run.steps(5, 1, 57, 1);  // until 62, then killed
  run.note("slow_node", 64);
  run.begin(100, 50, 5);
  run.steps(100, 51, 3, 1);  // 54 to 57 are not there again yet, but lost as well
  const Goodput g = run.until(104);
  expect_whole(g);
  EXPECT_NEAR(g.total, 104, kRounding);
  EXPECT_NEAR(g.productive, 50 + 3, kRounding);
  EXPECT_NEAR(g.lost, 7 + 2, kRounding);  // and until its last record
  EXPECT_NEAR(g.waiting, 95 - 64, kRounding);
  EXPECT_NEAR(g.restart, 10, kRounding);
  EXPECT_NEAR(g.other, 1, kRounding);
  EXPECT_EQ(g.failures, 1);
  EXPECT_NEAR(g.mean_time_between_failures, 104 - 31, kRounding);
  ASSERT_EQ(g.lost_by_cause.size(), 1U);
  EXPECT_THAT(g.lost_by_cause[0].cause, testing::HasSubstr("no end"));
  EXPECT_EQ(g.restart_by_cause.size(), 2U);
}

TEST(Goodput, AStepThatIsComputedThreeTimesCountsOnce) {
  Records run;
  run.begin(0, 0, 0);
  run.steps(0, 1, 10, 1);
  run.begin(10, 5, 0);
  run.steps(10, 6, 5, 1);
  run.begin(15, 5, 0);
  run.steps(15, 6, 5, 1);
  run.end(20, "done");
  const Goodput g = run.until(20);
  expect_whole(g);
  EXPECT_NEAR(g.productive, 10, kRounding);
  EXPECT_NEAR(g.lost, 10, kRounding);
  EXPECT_EQ(g.failures, 2);
}

/// A job that is submitted, hangs, is requeued, hits its limit, is resubmitted, and ends.
Records supervised_run() {
  Records run;
  run.note("submitted", 0);
  const auto job = [](int64_t restart) { return json{{"job", "17"}, {"restart", restart}}; };
  const auto with = [](json fields, const json& more) {
    fields.update(more);
    return fields;
  };
  run.note("attempt_begin", 60, with(job(0), {{"waited_seconds", 60}}));
  run.begin(70, 0, 8);
  run.steps(70, 1, 10, 1);
  run.note("hang", 100, job(0));
  run.note("attempt_end", 102, with(job(0), {{"exit_code", 74}, {"cause", "hang: node2"}}));
  run.note("decision", 102, with(job(0), {{"action", "requeue"}}));
  run.note("attempt_begin", 132, with(job(1), {{"waited_seconds", 30}}));
  run.begin(140, 8, 6);
  run.steps(140, 9, 20, 1);
  run.end(165, "signal", 3);
  run.note("attempt_end", 166, with(job(1), {{"exit_code", 75}, {"cause", "time limit"}}));
  run.note("decision", 166, with(job(1), {{"action", "resubmit"}}));
  run.note("submitted", 166);
  run.note("attempt_begin", 200, with(job(2), {{"waited_seconds", 34}}));
  run.begin(204, 28, 3);
  run.steps(204, 29, 2, 1);
  run.end(206, "done");
  run.note("attempt_end", 207, with(job(2), {{"exit_code", 0}, {"cause", "done"}}));
  run.note("decision", 207, with(job(2), {{"action", "end"}}));
  return run;
}

TEST(Goodput, ASupervisedRunHasItsCauses) {
  const Goodput g = supervised_run().until(1000);
  expect_whole(g);
  EXPECT_NEAR(g.total, 207, kRounding);
  EXPECT_NEAR(g.productive, 30, kRounding);
  EXPECT_NEAR(g.lost, 2 + 22, kRounding);  // steps 9 and 10, and hanging
  EXPECT_NEAR(g.restart, 10 + 8 + 4, kRounding);
  EXPECT_NEAR(g.waiting, 60 + 30 + 34, kRounding);
  EXPECT_NEAR(g.checkpoint, 3, kRounding);
  EXPECT_NEAR(g.other, 2 + 1 + 1, kRounding);
  EXPECT_EQ(g.attempts, 3);
  EXPECT_EQ(g.failures, 1);  // the limit was no failure: it had saved
  ASSERT_EQ(g.lost_by_cause.size(), 1U);
  EXPECT_EQ(g.lost_by_cause[0].cause, "hang: node2");
  ASSERT_EQ(g.waiting_by_cause.size(), 3U);
  EXPECT_EQ(g.waiting_by_cause[0].cause, "in the queue");
  EXPECT_EQ(g.waiting_by_cause[1].cause, "after: time limit");
  const std::string text = goodput_text(g);
  for (const char* word : {"goodput 14.5 % of 3.5 min", "hang: node2", "after: time limit",
                           "attempts 3, failures 1", "before the first save"})
    EXPECT_THAT(text, testing::HasSubstr(word));
}

TEST(Goodput, APauseThatWasWantedIsNotCounted) {
  Records run;
  run.begin(0, 0, 0);
  run.steps(0, 1, 10, 1);
  run.end(10, "done");
  run.begin(1000, 10, 5);  // more steps, on another day
  run.steps(1000, 11, 10, 1);
  run.end(1010, "stop_file");
  const Goodput g = run.until(5000);
  expect_whole(g);
  EXPECT_NEAR(g.paused, 985, kRounding);
  EXPECT_NEAR(g.total, 25, kRounding);
  EXPECT_NEAR(g.productive, 20, kRounding);
}

TEST(Goodput, SkippedStepsAreLost) {
  Records run;
  run.begin(0, 0, 0);
  run.steps(0, 1, 3, 1);
  run.metrics.back()["skipped"] = true;
  run.end(3, "done");
  const Goodput g = run.until(3);
  expect_whole(g);
  EXPECT_NEAR(g.productive, 2, kRounding);
  EXPECT_NEAR(g.lost, 1, kRounding);
}

TEST(Goodput, AJobThatWaitsOrStartsIsSaidToDoSo) {
  Records run;
  run.note("submitted", 0);
  Goodput g = run.until(50);
  expect_whole(g);
  EXPECT_NEAR(g.waiting, 50, kRounding);
  run.note("attempt_begin", 60);
  run.begin(65, 0, 4);
  g = run.until(75);
  expect_whole(g);
  EXPECT_NEAR(g.waiting, 60, kRounding);
  EXPECT_NEAR(g.restart, 15, kRounding);
}

TEST(Goodput, AClockThatIsBehindOnTheNextNodeShiftsThatStart) {
  Records run;
  run.begin(0, 0, 0);
  run.steps(0, 1, 100, 1);
  run.end(100, "signal");
  // The next node's clock says 50 when it is 110.
  run.begin(50, 100, 0);
  run.steps(50, 101, 20, 1);
  run.end(70, "done");
  const Goodput g = run.until(130);
  expect_whole(g);
  EXPECT_NEAR(g.productive, 120, kRounding);
  EXPECT_NEAR(g.total, 120, kRounding);  // how long it waited cannot be known
  EXPECT_EQ(g.lost, 0);
}

TEST(Goodput, OldRanksBesideANewStartAddNoTime) {
  Records run;
  run.note("attempt_begin", 0, {{"job", "9"}, {"restart", 0}});
  run.begin(1, 0, 1);
  run.steps(1, 1, 20, 1);
  run.note("attempt_begin", 22, {{"job", "9"}, {"restart", 1}});
  run.begin(24, 10, 2);
  run.step(24.5, 23, 1);  // of the old ranks
  run.step(25, 11, 1);
  run.step(25.5, 24, 1);  // and again
  run.step(26, 12, 1);
  run.note("training_end", 26.5, {{"job", "9"}, {"restart", 0}, {"reason", "error"}});
  run.note("attempt_end", 26.5, {{"job", "9"}, {"restart", 0}, {"exit_code", 76}});
  run.steps(26, 13, 4, 1);
  const Goodput g = run.until(30);
  expect_whole(g);
  EXPECT_NEAR(g.total, 30, kRounding);
  EXPECT_EQ(g.attempts, 2);
  EXPECT_EQ(g.failures, 1);
  EXPECT_LE(g.productive, 10 + 6 + kRounding);
  EXPECT_GE(g.productive, 10 + 4);
}

TEST(Goodput, FilesWithoutAnythingToReadGiveZeros) {
  for (const std::string& text : {std::string(), std::string("\n\n"), std::string("{\"ev"),
                                  std::string("[1]\n\"x\"\n12\nnull\n{}\n")}) {
    const std::string path = testing::TempDir() + "/phalanx_goodput_" + std::to_string(getpid());
    std::ofstream(path) << text;
    const Goodput g = goodput(read_records(path), read_records(path), kStart);
    std::filesystem::remove(path);
    EXPECT_EQ(g.total, 0);
    EXPECT_EQ(g.goodput(), 0);
    EXPECT_THAT(goodput_text(g), testing::HasSubstr("goodput 0.0 %"));
  }
}

TEST(Goodput, WithoutALedgerTheStepsStillCount) {
  Records run;
  run.steps(0, 1, 10, 1);
  run.steps(20, 6, 10, 1);  // again from 6, without a word
  run.ledger.clear();
  const Goodput g = run.until(30);
  expect_whole(g);
  EXPECT_NEAR(g.total, 30, kRounding);
  EXPECT_NEAR(g.productive, 15, kRounding);
  EXPECT_NEAR(g.lost, 5, kRounding);
}

/// Whatever is missing, doubled, out of order or of another kind, the parts are the whole.
TEST(Goodput, PartsSumToTheWholeForDamagedRecords) {
  std::mt19937 random(7);
  const auto below = [&](size_t n) { return static_cast<size_t>(random()) % n; };
  for (int trial = 0; trial < 300; ++trial) {
    Records run = supervised_run();
    for (auto* file : {&run.ledger, &run.metrics})
      for (int change = 0; change < 4; ++change) {
        json& record = (*file)[below(file->size())];
        switch (below(6)) {
          case 0:
            record = json::object();
            break;
          case 1:
            record["time"] = kStart + static_cast<double>(below(400)) - 100;
            break;
          case 2:
            std::swap(record, (*file)[below(file->size())]);
            break;
          case 3:
            file->push_back(json(record));
            break;
          case 4:
            record["seconds"] = "many";
            break;
          case 5:
            record["step"] = record["iteration"] = -1e18;
            break;
        }
      }
    SCOPED_TRACE(trial);
    expect_whole(run.until(static_cast<double>(below(600))));
  }
}

Goodput run_with(double stall, double durable, int failures) {
  Records run;
  double now = 0;
  for (int i = 0; i <= failures; ++i) {
    run.begin(now, i * 1000, 0);
    run.steps(now, i * 1000 + 1, 1000, 1);
    now += 1000;
    run.note("checkpoint", now,
             {{"durable", true}, {"stall_seconds", stall}, {"durable_seconds", durable}});
  }
  return run.until(now);
}

TEST(Goodput, TheSaveIntervalIsYoungsAndDalys) {
  // C = 0.02 s, M = 4000 / 3 s: Young's sqrt(2 C M) = 7.303 s; Daly's is 1 / 3 C shorter.
  const Goodput cheap = run_with(0.02, 0.1, 3);
  const double between = 4000.0 / 3;
  EXPECT_NEAR(cheap.mean_time_between_failures, between, 1e-3);
  EXPECT_NEAR(cheap.young_interval, std::sqrt(2 * 0.02 * between), 1e-6);
  EXPECT_NEAR(cheap.save_interval, cheap.young_interval - 2.0 / 3 * 0.02, 1e-3);
  EXPECT_EQ(cheap.save_interval_steps, 7);
  // C = 400 s: the higher order is what Daly's table gives: t = sqrt(2 C M) (1 + sqrt(p) / 3 +
  // p / 9) - C with p = C / 2M = 0.15.
  const Goodput dear = run_with(400, 500, 3);
  const double young = std::sqrt(2 * 400 * between);
  EXPECT_NEAR(dear.save_interval, young * (1 + std::sqrt(0.15) / 3 + 0.15 / 9) - 400, 1e-2);
  EXPECT_NEAR(run_with(5000, 1, 3).save_interval, between, 1e-3);  // from C = 2 M on: M
  EXPECT_NEAR(run_with(0.02, 60, 3).save_interval, 60, 1e-6) << "a save must be done first";
}

/// The recommended interval is where the expected loss is least: simulated, not the formula again.
TEST(Goodput, TheSaveIntervalLosesLeast) {
  const Goodput g = run_with(40, 50, 3);
  const double between = g.mean_time_between_failures;
  std::mt19937_64 random(3);
  std::exponential_distribution<double> failure(1 / between);
  const auto efficiency = [&](double interval) {
    double useful = 0, spent = 0;
    for (int i = 0; i < 40000; ++i) {
      const double life = failure(random);
      useful += std::floor(life / (interval + 40)) * interval;
      spent += life;
    }
    return useful / spent;
  };
  const double best = efficiency(g.save_interval);
  EXPECT_GT(best, efficiency(g.save_interval / 2));
  EXPECT_GT(best, efficiency(g.save_interval * 2));
}

TEST(Goodput, WithoutAFailureTheTimeSoFarIsABound) {
  const Goodput g = run_with(0.02, 0.1, 0);
  EXPECT_TRUE(g.no_failure_yet);
  EXPECT_NEAR(g.mean_time_between_failures, 1000, kRounding);
  EXPECT_THAT(goodput_text(g), testing::HasSubstr("mean time between failures at least 16.7 min"));
}

}  // namespace
}  // namespace phalanx
