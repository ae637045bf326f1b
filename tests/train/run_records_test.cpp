// What a run leaves in its ledger and metrics, and how it ends when it should not go on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/run_files.h"
#include "core/train/ledger.h"
#include "core/train/resume_certificate.h"
#include "core/train/run_training.h"
#include "core/train/train_step.h"
#include "core/train/trainer.h"
#include "data/file_io.h"
#include "kernels/cpu/cpu_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/train/tiny_run.h"

namespace phalanx {
namespace {

using nlohmann::json;
using testing::HasSubstr;

RunConfig run_in(const std::string& name) {
  RunConfig config = tiny_run();
  config.training.run_dir = fresh_folder(name);
  config.checkpoint.save_interval = 4;
  return config;
}

/// Trains on threads; the result of rank 0.
TrainingResult train(const RunConfig& config, int num_ranks = 1) {
  TrainingResult first{};
  run_thread_ranks(num_ranks, [&](ThreadRank& rank) {
    const DeviceMesh mesh(config.parallel, rank.size());
    ProcessGroups groups = rank.process_groups(mesh);
    CpuBackend backend(1);
    const TrainingResult result = run_training(config, "", backend, groups, mesh);
    if (rank.rank() == 0) first = result;
  });
  return first;
}

std::vector<json> events(const std::vector<json>& records, const std::string& event) {
  std::vector<json> found;
  for (const json& record : records)
    if (record.value("event", "") == event) found.push_back(record);
  return found;
}

std::vector<json> ledger_events(const RunConfig& config, const std::string& event) {
  return events(read_ledger(config.training.run_dir), event);
}

TEST(RunRecords, BeginSavesAndEnd) {
  RunConfig config = run_in("records");
  config.training.eval_interval = 5;
  train(config, 2);
  const auto begins = ledger_events(config, "training_begin");
  ASSERT_EQ(begins.size(), 1U);
  EXPECT_EQ(begins[0]["step"], 0);
  EXPECT_EQ(begins[0]["train_iters"], 10);
  EXPECT_EQ(begins[0]["ranks"], 2);
  EXPECT_EQ(begins[0]["checkpoint"], "");
  EXPECT_EQ(begins[0]["layout"], "dp 2");
  EXPECT_GT(begins[0]["startup_seconds"], 0);
  std::vector<int64_t> saved;
  for (const json& save : ledger_events(config, "checkpoint")) {
    saved.push_back(save["step"]);
    EXPECT_EQ(save["durable"], true);
    EXPECT_EQ(save["problem"], "");
    EXPECT_GT(save["stall_seconds"], 0);
    EXPECT_GT(save["durable_seconds"], 0);
  }
  EXPECT_THAT(saved, testing::ElementsAre(4, 8, 10));
  const auto ends = ledger_events(config, "training_end");
  ASSERT_EQ(ends.size(), 1U);
  EXPECT_EQ(ends[0]["reason"], "done");
  EXPECT_EQ(ends[0]["step"], 10);
  EXPECT_EQ(ends[0]["updates"], 10);

  const auto metrics = read_records(metrics_path(config.training.run_dir));
  EXPECT_EQ(metrics.front()["event"], "run");
  EXPECT_EQ(metrics.front()["ranks"], 2);
  EXPECT_EQ(metrics.front()["nodes"], 1);
  EXPECT_EQ(metrics.front()["tokens_per_step"], 8 * 16);
  EXPECT_GT(metrics.front()["memory_bytes_plan"], 1000);
  EXPECT_EQ(metrics.back()["event"], "end");
  EXPECT_EQ(metrics.back()["step"], 10);
  // More than the plan of two ranks, because the process is in it as well.
  EXPECT_GT(metrics.back()["memory_peak_bytes"], metrics.front()["memory_bytes_plan"]);
  double time = begins[0]["time"];
  for (const json& record : metrics) {
    if (!record.contains("lm_loss")) continue;
    const json& seconds = record["seconds"];
    EXPECT_NEAR(seconds["step"].get<double>(),
                seconds["compute"].get<double>() + seconds["data"].get<double>() +
                    seconds["wait"].get<double>(),
                3e-6);  // six decimals each
    EXPECT_GT(seconds["wait"], 0);
    // Steps do not overlap, and what was saved lies between them.
    const double ended = record["time"];
    EXPECT_GE(ended - seconds["step"].get<double>() - seconds["save"].get<double>(), time - 1e-3);
    time = ended;
  }
}

TEST(RunRecords, AnErrorEndsTheTraining) {
  const RunConfig config = run_in("error");
  train(config);
  // The next start goes on at step 8 and meets another loss than the one written down there.
  const std::string save = config.training.run_dir + "/checkpoints";
  std::filesystem::remove_all(save + "/iter_0000010");
  const std::string path = save + "/iter_0000008/next_step.json";
  ResumeCertificate certificate = parse_certificate(read_file(path), path);
  certificate.loss += 1;
  write_file(path, certificate_json(certificate));
  EXPECT_THROW(train(config), Error);
  const auto ends = ledger_events(config, "training_end");
  ASSERT_EQ(ends.size(), 2U);
  EXPECT_EQ(ends[1]["reason"], "error");
  EXPECT_EQ(ends[1]["step"], 9);
  EXPECT_THAT(ends[1]["text"].get<std::string>(), HasSubstr("not the one that wrote"));
}

TEST(StopFile, EndsARunAtAStepBoundaryAndRefusesTheNext) {
  RunConfig config = run_in("stop_file");
  config.training.train_iters = 1'000'000;
  run_thread_ranks(2, [&](ThreadRank& rank) {
    const DeviceMesh mesh(config.parallel, rank.size());
    ProcessGroups groups = rank.process_groups(mesh);
    CpuBackend backend(1);
    Trainer trainer(config, backend, groups);
    if (rank.rank() == 0) std::ofstream(stop_file_path(config.training.run_dir)) << "";
    groups.world->barrier();
    const TrainingResult result = trainer.run("");
    EXPECT_EQ(result.stopped, StopReason::stop_file);
    EXPECT_LT(result.steps, 1'000'000);
  });
  const auto ends = ledger_events(config, "training_end");
  ASSERT_EQ(ends.size(), 1U);
  EXPECT_EQ(ends[0]["reason"], "stop_file");
  EXPECT_THAT(ends[0]["text"].get<std::string>(), HasSubstr("STOP is there"));

  try {
    train(config, 2);
    FAIL() << "it started";
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("STOP is there"));
    EXPECT_THAT(error.what(), HasSubstr("remove it to train"));
  }
  EXPECT_EQ(ledger_events(config, "training_begin").size(), 1U);
  std::filesystem::remove(stop_file_path(config.training.run_dir));
  config.training.train_iters = 2;
  EXPECT_EQ(train(config, 2).stopped, StopReason::none);
}

TEST(StopFile, IsLookedForOnceASecond) {
  RunConfig config = run_in("stop_file_often");
  ProcessGroups groups = make_single_process_groups();
  CpuBackend backend(1);
  Trainer trainer(config, backend, groups);
  EXPECT_EQ(trainer.agreed_stop(), StopReason::none);
  std::ofstream(stop_file_path(config.training.run_dir)) << "";
  const auto begin = std::chrono::steady_clock::now();
  while (trainer.agreed_stop() == StopReason::none)
    ASSERT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
  EXPECT_GT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(500));
}

/// The first update makes the weights useless, so that all later steps are skipped.
RunConfig diverging_run(const std::string& name) {
  RunConfig config = run_in(name);
  config.optimizer.lr = 1e38;
  config.optimizer.lr_warmup_iters = 0;
  config.training.max_skipped_in_row = 3;
  config.training.train_iters = 20;
  config.checkpoint.save_interval = 1000;
  return config;
}

TEST(Diverged, ARunSavesBehindTheBadStepsAndTheNextCountsAnew) {
  const RunConfig config = diverging_run("diverged_run");
  TrainingResult result = train(config, 2);
  EXPECT_EQ(result.stopped, StopReason::diverged);
  EXPECT_EQ(result.steps, 4);
  EXPECT_TRUE(std::filesystem::exists(config.training.run_dir + "/checkpoints/iter_0000004"));
  EXPECT_FALSE(std::filesystem::exists(config.training.run_dir + "/weights.h5"))
      << "such weights must not be taken for a result";
  auto ends = ledger_events(config, "training_end");
  ASSERT_EQ(ends.size(), 1U);
  EXPECT_EQ(ends[0]["reason"], "diverged");
  EXPECT_EQ(ends[0]["step"], 4);
  EXPECT_EQ(ends[0]["updates"], 1);
  EXPECT_THAT(ends[0]["text"].get<std::string>(), HasSubstr("--lr"));

  testing::internal::CaptureStderr();
  result = train(config, 2);  // goes on at step 5, and has three more bad steps of its own
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("skipped steps are counted anew"));
  EXPECT_EQ(result.stopped, StopReason::diverged);
  EXPECT_EQ(result.steps, 7);
  ends = ledger_events(config, "training_end");
  ASSERT_EQ(ends.size(), 2U);
  EXPECT_EQ(ends[1]["updates"], 0);
  EXPECT_FALSE(std::filesystem::exists(config.training.run_dir + "/checkpoints/iter_0000007"))
      << "a start without one good step has nothing to save";
}

TEST(Diverged, NoOlderCheckpointMakesRoom) {
  RunConfig config = diverging_run("diverged_keeps");
  config.checkpoint.save_interval = 1;
  config.checkpoint.save_keep_last = 1;
  EXPECT_EQ(train(config).steps, 4);
  const std::string folder = config.training.run_dir + "/checkpoints/iter_000000";
  EXPECT_TRUE(std::filesystem::exists(folder + "1")) << "of the last step that was not skipped";
  EXPECT_FALSE(std::filesystem::exists(folder + "3"));
  EXPECT_TRUE(std::filesystem::exists(folder + "4"));
}

TEST(Diverged, WithoutCheckpointsItEndsAllTheSame) {
  RunConfig config = diverging_run("diverged_unsaved");
  config.checkpoint.save_interval = 0;
  EXPECT_EQ(train(config).stopped, StopReason::diverged);
}

}  // namespace
}  // namespace phalanx
