// A study at work on a Slurm that follows a script: what is queued, when, again, and what is not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "cluster/study.h"
#include "core/run_files.h"
#include "launch/prepared_run.h"
#include "tests/cluster/study_fixture.h"
#include "tests/train/tiny_run.h"

namespace phalanx::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// Four nodes. A job runs after the first look at it and has ended after the next; then `ends` was
/// called with its number.
class ScriptedSlurm : public Slurm {
 public:
  explicit ScriptedSlurm(std::function<void(int64_t)> ends) : ends_(std::move(ends)) {}
  std::vector<std::string> dependencies;  // of each sbatch, in order
  bool stands_still = false;              // jobs stay where they are
  bool busy_once = false;                 // the next look fails

 protected:
  CommandResult run(const std::vector<std::string>& words) override {
    if (words[0] == "sinfo") return {.output = nodes_text()};
    if (words[0] == "srun") return {.output = "MPI plugin types are...\n\tpmix\n"};
    if (words[0] == "sbatch") return submitted(words);
    return {.output = job_text(std::stoll(words.back()))};
  }

 private:
  static std::string nodes_text() {
    std::string text;
    for (int i = 1; i <= 4; ++i)
      text += fmt::format("node{}|main|main*|2|4000|idle|infinite|infinite|(null)\n", i);
    return text;
  }
  CommandResult submitted(const std::vector<std::string>& words) {
    std::string dependency;
    for (const std::string& word : words)
      if (word.starts_with("--dependency=")) dependency = word.substr(13);
    dependencies.push_back(dependency);
    return {.output = fmt::format("{}\n", dependencies.size())};
  }
  std::string job_text(int64_t id) {
    if (std::exchange(busy_once, false))
      fail("slurm_load_jobs error: Unable to contact controller");
    const int looks = stands_still ? 0 : looks_[id]++;
    const char* state = looks == 0 ? "PENDING" : looks == 1 ? "RUNNING" : "FAILED";
    if (looks == 2) ends_(id);
    return fmt::format("JobId={} JobState={} Reason=None ExitCode=1:0", id, state);
  }

  std::function<void(int64_t)> ends_;
  std::map<int64_t, int> looks_;
};

/// An sbatch to be found, as on a login node.
void put_sbatch_on_path() {
  const std::string folder = fresh_folder("path");
  std::ofstream(folder + "/sbatch") << "#!/bin/sh\nexit 1\n";
  std::filesystem::permissions(folder + "/sbatch", std::filesystem::perms::owner_all);
  setenv("PATH", (folder + ":" + getenv("PATH")).c_str(), 1);
}

class StudyRun : public testing::Test {
 protected:
  void SetUp() override {
    put_sbatch_on_path();
    study_ = small_study(fresh_folder("study"), "none", false);
    write_study(study_);
  }

  StudyTask task() {
    return {.study = study_,
            .prepare = [](const StudyPoint& point) { return prepare_run(point.arguments); },
            .wait = [this] { return waits_-- > 0; },
            .say = [this](const std::string& line) { said_ += line + "\n"; }};
  }
  /// Records of all steps, as a run leaves them.
  void finish(int64_t index) {
    const StudyPoint& point = study_.points[static_cast<size_t>(index)];
    std::vector<nlohmann::json> records;
    for (int64_t step = 1; step <= point.train_iters; ++step)
      records.push_back({{"iteration", step},
                         {"lm_loss", 5},
                         {"step_ms", 10},
                         {"tokens_per_second", 100 * point.nodes}});
    append_records(metrics_path(study_.run_folder(point)), records);
  }
  static std::vector<std::string> states(const StudyReport& report) {
    std::vector<std::string> list;
    for (const PointResult& result : report.results) list.emplace_back(enum_name(result.state));
    return list;
  }
  std::string page() const {
    std::ifstream file(study_.folder + "/report.html");
    return {std::istreambuf_iterator<char>(file), {}};
  }

  Study study_;
  std::string said_;
  int waits_ = 20;
};

TEST_F(StudyRun, PointsFollowEachOther) {
  ScriptedSlurm slurm([&](int64_t job) { finish(job - 1); });
  const StudyReport report = run_study(task(), slurm);
  EXPECT_THAT(slurm.dependencies, ElementsAre("", "afterany:1", "afterany:2"));
  EXPECT_THAT(states(report), ElementsAre("done", "done", "done"));
  EXPECT_DOUBLE_EQ(*report.results[2].efficiency, 1);
  EXPECT_THAT(page(), HasSubstr("3 of 3 points done"));
  EXPECT_THAT(said_, HasSubstr("nodes-004: done"));
}

TEST_F(StudyRun, ParallelOnesDoNot) {
  ScriptedSlurm slurm([&](int64_t job) { finish(job - 1); });
  StudyTask parallel = task();
  parallel.parallel = true;
  parallel.submit.dependency = "afterok:99";
  run_study(parallel, slurm);
  EXPECT_THAT(slurm.dependencies, ElementsAre("afterok:99", "afterok:99", "afterok:99"));
}

TEST_F(StudyRun, InterruptedLeavesJobsAndIsEnteredAgain) {
  ScriptedSlurm slurm([&](int64_t job) { finish(job - 1); });
  slurm.stands_still = true;
  waits_ = 0;
  EXPECT_THAT(states(run_study(task(), slurm)), ElementsAre("queued", "queued", "queued"));
  slurm.stands_still = false;
  waits_ = 20;
  EXPECT_THAT(states(run_study(task(), slurm)), ElementsAre("done", "done", "done"));
  EXPECT_EQ(slurm.dependencies.size(), 3U) << "nothing is queued twice";
  run_study(task(), slurm);
  EXPECT_EQ(slurm.dependencies.size(), 3U) << "nor when all is done";
}

TEST_F(StudyRun, FailedPointsRunAgainOnlyWhenAsked) {
  ScriptedSlurm slurm([&](int64_t job) {
    if (job != 2) finish(job == 4 ? 1 : job - 1);
  });
  const StudyReport report = run_study(task(), slurm);
  EXPECT_THAT(states(report), ElementsAre("done", "failed", "done"));
  EXPECT_THAT(page(), HasSubstr("job 2 ended after step 0 of 9"));
  EXPECT_THAT(states(run_study(task(), slurm)), ElementsAre("done", "failed", "done"));
  EXPECT_EQ(slurm.dependencies.size(), 3U);
  StudyTask again = task();
  again.retry_failed = true;
  EXPECT_THAT(states(run_study(again, slurm)), ElementsAre("done", "done", "done"));
  EXPECT_EQ(slurm.dependencies.size(), 4U);
}

// Handed in just before the program was killed: the run folder knows, study.json need not.
TEST_F(StudyRun, KnowsJobsByTheirRunFolders) {
  ScriptedSlurm slurm([&](int64_t job) { finish(job - 1); });
  SubmitOptions options;
  submit_run(options, prepare_run(study_.points[0].arguments), slurm);
  run_study(task(), slurm);
  EXPECT_THAT(slurm.dependencies, ElementsAre("", "afterany:1", "afterany:2"));
}

TEST_F(StudyRun, ABusyControllerIsAskedAgain) {
  ScriptedSlurm slurm([&](int64_t job) { finish(job - 1); });
  StudyTask task_with_trouble = task();
  task_with_trouble.wait = [&] {
    slurm.busy_once = waits_ == 19;
    return waits_-- > 0;
  };
  EXPECT_THAT(states(run_study(task_with_trouble, slurm)), ElementsAre("done", "done", "done"));
  EXPECT_THAT(said_, HasSubstr("cannot look at the queue just now"));
}

TEST_F(StudyRun, WithoutSlurmNothingIsCalledFailed) {
  ScriptedSlurm slurm([](int64_t) {});
  slurm.stands_still = true;
  waits_ = 0;
  run_study(task(), slurm);
  finish(0);
  EXPECT_THAT(states(gather_study(study_, nullptr)), ElementsAre("done", "unknown", "unknown"));
}

TEST_F(StudyRun, GoesOnOnlyWithTheSameStudy) {
  EXPECT_EQ(continued_study(study_).points.size(), 3U);
  const auto refusal = [](const Study& asked) -> std::string {
    try {
      continued_study(asked);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "";
  };
  Study other = study_;
  other.nodes = "1,2,8";
  EXPECT_THAT(refusal(other), HasSubstr("--nodes 1,2,4"));
  other = study_;
  other.train_arguments.push_back("--bf16");
  EXPECT_THAT(refusal(other), HasSubstr("train options"));
  other = study_;
  other.weak = true;
  EXPECT_THAT(refusal(other), HasSubstr("--strong"));
  other.folder = fresh_folder("empty");
  EXPECT_THAT(refusal(other), HasSubstr("there is no study in"));
}

TEST_F(StudyRun, TheFileHasTheWholeStudy) {
  study_.points[1].problems = {"a \"reason\"", "ünother"};
  study_.points[2].forecast.bytes.push_back({"ep", Collective::all_to_all, std::nullopt});
  write_study(study_);
  const Study read = read_study(study_.folder);
  ASSERT_EQ(read.points.size(), study_.points.size());
  for (size_t i = 0; i < read.points.size(); ++i) {
    EXPECT_EQ(read.points[i].name, study_.points[i].name);
    EXPECT_EQ(read.points[i].arguments, study_.points[i].arguments);
    EXPECT_EQ(read.points[i].problems, study_.points[i].problems);
    EXPECT_EQ(read.points[i].forecast.bytes, study_.points[i].forecast.bytes);
    EXPECT_EQ(read.points[i].forecast.memory_bytes, study_.points[i].forecast.memory_bytes);
  }
  std::ofstream(study_path(study_.folder)) << "{}";
  EXPECT_THROW(read_study(study_.folder), Error);
}

}  // namespace
}  // namespace phalanx::test
