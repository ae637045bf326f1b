// The script: its lines, its quoting, and that bash can read it.
#include "cluster/batch_script.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <sstream>

#include "cluster/external_command.h"
#include "cluster/warning_time.h"
#include "kernels/base/error.h"
#include "tests/cluster/fake_slurm.h"

namespace phalanx {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::Not;

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

BatchScript plain_script() {
  return {.options = {.nodes = 4, .ranks_per_node = 8, .time = "04:00:00"},
          .run_dir = "/scratch/run",
          .program = "/opt/phalanx",
          .working_folder = "/home/u",
          .cpus_per_rank = 16,
          .threads_per_rank = 16,
          .warning_seconds = 180};
}

TEST(BatchScript, LinesOfAPlainRun) {
  BatchScript script = plain_script();
  script.options.partition = "gpu";
  script.options.account = "lab";
  script.options.qos = "high";
  script.options.gpus_per_node = 8;
  script.options.memory = "500G";
  script.options.sbatch_options = {"exclusive", "constraint=h100&ib"};
  const auto lines = lines_of(batch_script_text(script));
  EXPECT_EQ(lines.front(), "#!/bin/bash");
  for (const char* line :
       {"#SBATCH --job-name=run", "#SBATCH --nodes=4", "#SBATCH --ntasks-per-node=8",
        "#SBATCH --cpus-per-task=16", "#SBATCH --gres=gpu:8", "#SBATCH --mem=500G",
        "#SBATCH --time=04:00:00", "#SBATCH --partition=gpu", "#SBATCH --account=lab",
        "#SBATCH --qos=high", "#SBATCH --exclusive", "#SBATCH \"--constraint=h100&ib\"",
        "#SBATCH --chdir=/home/u", "#SBATCH --output=/scratch/run/slurm-%j.log",
        "#SBATCH --open-mode=append", "#SBATCH --requeue", "#SBATCH --signal=B:USR1@180",
        "export SLURM_PMIX_FENCE=ring", "exec /opt/phalanx supervise --run-dir /scratch/run"})
    EXPECT_THAT(lines, Contains(line));
  EXPECT_THAT(lines, Not(Contains(HasSubstr("yield_when_idle"))));
}

TEST(BatchScript, WhatIsNotAskedForIsNotThere) {
  BatchScript script = plain_script();
  script.options.requeue = false;
  script.options.time.clear();
  script.overcommit = true;
  const std::string text = batch_script_text(script);
  const auto lines = lines_of(text);
  EXPECT_THAT(lines, Contains("#SBATCH --nodes=4"));
  EXPECT_THAT(lines, Contains("#SBATCH --no-requeue"));
  EXPECT_THAT(lines, Contains("#SBATCH --cpus-per-task=16"));  // those of a whole node
  EXPECT_THAT(text, Not(HasSubstr("ntasks")));
  EXPECT_THAT(lines, Contains("export OMPI_MCA_mpi_yield_when_idle=1"));
  for (const char* option : {"--time", "--partition", "--account", "--qos", "--gres", "--mem"})
    EXPECT_THAT(text, Not(HasSubstr(option))) << option;
}

TEST(BatchScript, ARangeOfNodesCountsNodes) {
  BatchScript script = plain_script();
  script.options.min_nodes = 2;
  const std::string text = batch_script_text(script);
  EXPECT_THAT(text, HasSubstr("#SBATCH --nodes=2-4\n"));
  EXPECT_THAT(text, HasSubstr("#SBATCH --cpus-per-task=128\n"));  // 8 ranks x 16
  EXPECT_THAT(text, Not(HasSubstr("ntasks")));
}

TEST(BatchScript, OddPathsAreQuotedForSbatchAndForBash) {
  test::FakeSite site;
  BatchScript script = plain_script();
  script.run_dir = site.folder() + "/a run's \"q\" 50% $HOME `x`";
  script.program = "/bin/echo";
  const std::string text = batch_script_text(script);
  EXPECT_THAT(text, HasSubstr("#SBATCH \"--output=" + site.folder() +
                              "/a run's \\\"q\\\" 50%% $HOME `x`/slurm-%j.log\"\n"));
  EXPECT_THAT(text, HasSubstr("#SBATCH --job-name=a_run_s__q__50___HOME__x_\n"));
  const std::string path = site.folder() + "/script";
  test::write_text(path, text);
  EXPECT_EQ(run_command({"/bin/bash", "-n", path}, 10).exit_code, 0);
  // Run whole, with echo for the program: bash must see the words as they were.
  EXPECT_EQ(run_command({"/bin/bash", path}, 10).output,
            "supervise --run-dir " + script.run_dir + "\n");
}

TEST(BatchScript, PathsThatSlurmCannotHoldAreRefused) {
  for (const char* path : {"/a\nb", "/a\\b"}) {
    BatchScript script = plain_script();
    script.run_dir = path;
    EXPECT_THROW(batch_script_text(script), UsageError) << path;
  }
}

TEST(BatchScript, NoWordMakesALineOfItsOwn) {
  for (const char* account : {"a\n#SBATCH --uid=0", "a\rb"}) {
    BatchScript script = plain_script();
    script.options.account = account;
    EXPECT_THROW(batch_script_text(script), UsageError);
  }
}

TEST(WarningTime, GrowsWithTheSlowestSaveAndStep) {
  using nlohmann::json;
  EXPECT_EQ(warning_seconds({}, {}, 0), 180);
  const std::vector<json> ledger{
      {{"event", "checkpoint"}, {"stall_seconds", 2.0}, {"durable_seconds", 50.0}},
      {{"event", "checkpoint"}, {"stall_seconds", 1.0}, {"durable_seconds", 10.0}}};
  const std::vector<json> metrics{{{"step_ms", 1500.0}}, {{"step_ms", 7000.0}}};
  EXPECT_EQ(warning_seconds(ledger, metrics, 0), 60 + 2 * 50 + 7);
  EXPECT_EQ(warning_seconds(ledger, metrics, 3600), 60 + 2 * 50 + 7);
  EXPECT_EQ(warning_seconds(ledger, metrics, 120), 60);  // half of a short job
  EXPECT_EQ(warning_seconds({{{"event", "checkpoint"}, {"stall_seconds", 1e6}}}, {}, 0), 65535);
}

TEST(WarningTime, TrainingEndsBeforeTheJob) {
  EXPECT_DOUBLE_EQ(training_minutes(3600), 59);
  EXPECT_DOUBLE_EQ(training_minutes(60), 0.75);
  EXPECT_DOUBLE_EQ(training_minutes(240), 3);
  EXPECT_GT(training_minutes(0), 0);  // 0 would mean no limit
}

}  // namespace
}  // namespace phalanx
