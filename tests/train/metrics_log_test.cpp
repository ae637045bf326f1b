// Log lines, to the character: parsers of Megatron's logs read them.
#include "core/train/metrics_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

namespace phalanx {
namespace {

RunFacts facts() {
  return {.train_iters = 500000,
          .global_batch_size = 1024,
          .log_interval = 2,
          .num_ranks = 2,
          .flops_per_token = 1e9,
          .peak_flops = 1e12};
}

TrainCounters counters_at(int64_t step) {
  return {.step = step, .consumed_samples = step * 1024, .consumed_tokens = step * 1024 * 8};
}

StepMetrics metrics_with_loss(double loss) {
  return {.loss = loss,
          .z_loss = 4.0,
          .gradient_norm = 3.21,
          .learning_rate = 1.2e-5,
          .loss_tokens = 8000,
          .tokens = 8192};
}

TEST(MetricsLog, TheIterationLineIsMegatrons) {
  const LogInterval interval{.steps = 2,
                             .seconds = 10.2468,
                             .tokens = 16384,
                             .loss_sum = 2 * 8.123456,
                             .last = metrics_with_loss(8.0)};
  // tokens/s 16384 / 10.2468 = 1598.9; per rank 799.47 x 1e9 FLOP = 0.8 TFLOP/s = 79.9 % of 1e12.
  EXPECT_EQ(iteration_line(facts(), counters_at(100), interval, "2026-01-02 03:04:05.678901"),
            " [2026-01-02 03:04:05.678901] iteration      100/  500000 |"
            " consumed samples:       102400 | elapsed time per iteration (ms): 5123.4 |"
            " throughput per GPU (TFLOP/s/GPU): 0.8 | learning rate: 1.200000E-05 |"
            " global batch size:  1024 | lm loss: 8.123456E+00 | loss scale: 1.0 |"
            " grad norm: 3.210 | number of skipped iterations:   0 |"
            " number of nan iterations:   0 | tokens/s: 1599 |"
            " model FLOP utilisation: 79.9% | eta: 711:26:28 |");
}

TEST(MetricsLog, SkippedStepsStayOutOfTheMean) {
  LogInterval interval{.steps = 3,
                       .skipped = 1,
                       .nan = 1,
                       .seconds = 1,
                       .tokens = 1,
                       .loss_sum = 5.0,
                       .last = metrics_with_loss(std::nan(""))};
  EXPECT_THAT(iteration_line(facts(), counters_at(3), interval, ""),
              testing::AllOf(testing::HasSubstr("| lm loss: 2.500000E+00 |"),
                             testing::HasSubstr("| number of skipped iterations:   1 |"),
                             testing::HasSubstr("| number of nan iterations:   1 |")));
  interval.skipped = 3;
  EXPECT_THAT(iteration_line(facts(), counters_at(3), interval, ""),
              testing::HasSubstr("| lm loss: NAN |"));
}

TEST(MetricsLog, ZLossHasItsOwnField) {
  RunFacts with_z = facts();
  with_z.log_z_loss = true;
  const LogInterval interval{
      .steps = 1, .seconds = 1, .tokens = 1, .loss_sum = 2, .z_loss_sum = 4.5};
  EXPECT_THAT(iteration_line(with_z, counters_at(1), interval, ""),
              testing::HasSubstr("| lm loss: 2.000000E+00 | z loss: 4.500000E+00 | loss scale"));
}

TEST(MetricsLog, TheValidationLineIsMegatrons) {
  EXPECT_EQ(validation_line(200, 2.0),
            " validation loss at iteration 200 | lm loss value: 2.000000E+00 |"
            " lm loss PPL: 7.389056E+00 | ");
  EXPECT_THAT(validation_line(1, 1e6), testing::HasSubstr("PPL: 4.851652E+08"));  // e^20
}

TEST(MetricsLog, TimeLeft) {
  EXPECT_EQ(hours_minutes_seconds(201.4), "0:03:21");
  EXPECT_EQ(hours_minutes_seconds(0), "0:00:00");
  EXPECT_EQ(hours_minutes_seconds(360000), "100:00:00");
}

TEST(MetricsLog, StepRecordsAreJsonEvenWithNan) {
  StepMetrics metrics = metrics_with_loss(std::nan(""));
  metrics.gradient_norm = std::numeric_limits<double>::infinity();
  metrics.skipped = true;
  const auto record =
      nlohmann::json::parse(step_json(facts(), counters_at(7), metrics, {.step = 0.5}));
  EXPECT_TRUE(record["lm_loss"].is_null());
  EXPECT_TRUE(record["grad_norm"].is_null());
  EXPECT_EQ(record["skipped"], true);
  EXPECT_EQ(record["iteration"], 7);
  EXPECT_EQ(record["consumed_samples"], 7168);
  EXPECT_EQ(record["consumed_tokens"], 57344);
  EXPECT_EQ(record["tokens_per_second"], 16384.0);
  EXPECT_EQ(record["step_ms"], 500.0);
  EXPECT_EQ(record["loss_tokens"], 8000);
  EXPECT_DOUBLE_EQ(record["mfu"].get<double>(), 8.192);
}

TEST(MetricsLog, StepRecordsSayWhereTheTimeWent) {
  const StepTimes times{.step = 0.5, .data = 0.125, .wait = 0.25, .save = 2, .ended = 1.7e9 + 0.5};
  const auto record =
      nlohmann::json::parse(step_json(facts(), counters_at(7), metrics_with_loss(1), times));
  EXPECT_EQ(record["time"], 1.7e9 + 0.5);
  EXPECT_EQ(record["seconds"], nlohmann::json::parse(R"({"step": 0.5, "compute": 0.125,
      "data": 0.125, "wait": 0.25, "save": 2.0})"));
}

TEST(MetricsLog, LossesSurviveTheirRecordToTheBit) {
  const double loss = 5.0 / 3.0;
  const auto record = nlohmann::json::parse(
      step_json(facts(), counters_at(1), metrics_with_loss(loss), {.step = 1}));
  EXPECT_EQ(record["lm_loss"].get<double>(), loss);
}

TEST(MetricsLog, WritesOneRecordPerStepAndLinesAtTheInterval) {
  const std::string folder = testing::TempDir() + "/phalanx_metrics_log_test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  std::FILE* out = std::fopen((folder + "/out.txt").c_str(), "w");
  {
    MetricsLog log(facts(), {folder + "/metrics.jsonl", folder + "/tensorboard"}, out);
    for (int64_t step = 1; step <= 4; ++step)
      log.step(counters_at(step), metrics_with_loss(1.0 * static_cast<double>(step)),
               {.step = 0.1});
    log.validation(counters_at(4), {.loss = 2.0, .z_loss = 1.0, .tokens = 99}, 0.25);
    log.record("other", {{"text", "a \"word\"\n and \xff"}});
  }
  std::fclose(out);
  std::ifstream records(folder + "/metrics.jsonl");
  std::vector<nlohmann::json> parsed;
  for (std::string line; std::getline(records, line);)
    parsed.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(parsed.size(), 6U);
  EXPECT_EQ(parsed[2]["iteration"], 3);
  EXPECT_EQ(parsed[4]["validation_loss"], 2.0);
  EXPECT_DOUBLE_EQ(parsed[4]["validation_perplexity"].get<double>(), std::exp(2.0));
  EXPECT_EQ(parsed[4]["evaluation_seconds"], 0.25);
  EXPECT_EQ(parsed[5]["event"], "other");
  EXPECT_GT(parsed[5]["time"], 1.7e9);
  EXPECT_EQ(parsed[5]["text"], "a \"word\"\n and \uFFFD");  // bytes that are no text
  std::stringstream text;
  text << std::ifstream(folder + "/out.txt").rdbuf();
  // Steps 2 and 4 print; their means are 1.5 and 3.5. No terminal codes in a file.
  EXPECT_THAT(text.str(), testing::HasSubstr("lm loss: 1.500000E+00"));
  EXPECT_THAT(text.str(), testing::HasSubstr("lm loss: 3.500000E+00"));
  EXPECT_THAT(text.str(), testing::Not(testing::HasSubstr("\r")));
}

}  // namespace
}  // namespace phalanx
