// Submission: what cannot work is refused before anything is queued or written.
#include "cluster/submission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "cluster/cancellation.h"
#include "cluster/run_status.h"
#include "core/run_files.h"
#include "core/train/ledger.h"
#include "kernels/base/error.h"
#include "launch/prepared_run.h"
#include "tests/cluster/fake_slurm.h"

namespace phalanx {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

class SubmissionTest : public testing::Test {
 protected:
  SubmissionTest() { site_.install_slurm(); }

  PreparedRun run(const std::vector<std::string>& more = {}) const {
    auto arguments = test::tiny_train_arguments(site_.run_dir());
    arguments.insert(arguments.end(), more.begin(), more.end());
    return prepare_run(arguments);
  }

  Submission submit(const SubmitOptions& options, const std::vector<std::string>& more = {}) {
    return submit_run(options, run(more), slurm_);
  }

  /// Submits what must be refused, and returns why. Nothing may have been queued or written.
  std::string refusal(const SubmitOptions& options, const std::vector<std::string>& more = {}) {
    const size_t queued = site_.calls("sbatch").size();
    const auto before = files();
    std::string text;
    try {
      submit(options, more);
      ADD_FAILURE() << "was not refused";
    } catch (const UsageError& error) {
      text = error.what();
    }
    EXPECT_THAT(site_.calls("sbatch"), SizeIs(queued));
    EXPECT_EQ(files(), before);
    return text;
  }

  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(site_.run_dir()))
      names.push_back(entry.path().filename().string());
    std::ranges::sort(names);
    return names;
  }

  void job_is(const std::string& state) {
    site_.program("scontrol", "echo '" + test::job_line("101", state) + "'");
  }

  test::FakeSite site_;
  Slurm slurm_;
};

TEST_F(SubmissionTest, QueuesAndKeepsWhatItDid) {
  const Submission done =
      submit({.nodes = 4, .min_nodes = 2, .ranks_per_node = 2, .time = "30", .requeue = false});
  EXPECT_EQ(done.job, "101");
  EXPECT_EQ(test::file_text(batch_script_path(site_.run_dir())), done.script);
  EXPECT_THAT(done.script, HasSubstr("#SBATCH --nodes=2-4\n"));
  EXPECT_THAT(done.script, HasSubstr("#SBATCH --cpus-per-task=2\n"));  // 2 ranks share 2 processors
  EXPECT_THAT(site_.calls("sbatch"),
              ElementsAre("sbatch --parsable " + site_.run_dir() + "/submit.sbatch"));
  const SubmissionRecord record = read_submission(site_.run_dir());
  EXPECT_EQ(record.options.nodes, 4);
  EXPECT_EQ(record.options.min_nodes, 2);
  EXPECT_EQ(record.options.time, "30");
  EXPECT_FALSE(record.options.requeue);
  EXPECT_EQ(record.launcher, Launcher::srun_pmix);
  EXPECT_EQ(record.mpi_plugin, "pmix");
  EXPECT_EQ(record.train_arguments, test::tiny_train_arguments(site_.run_dir()));
  EXPECT_THAT(record.jobs, ElementsAre("101"));
  EXPECT_EQ(record.warning_seconds, 180);
  const auto ledger = read_ledger(site_.run_dir());
  ASSERT_THAT(ledger, SizeIs(1));
  EXPECT_EQ(ledger[0]["event"], "submitted");
  EXPECT_EQ(ledger[0]["job"], "101");
}

TEST_F(SubmissionTest, DryRunWritesAndQueuesNothing) {
  const Submission dry = submit({.nodes = 2, .dry_run = true});
  EXPECT_TRUE(dry.job.empty());
  EXPECT_THAT(dry.script, HasSubstr("#SBATCH --nodes=2\n"));
  EXPECT_THAT(files(), IsEmpty());
  EXPECT_THAT(site_.calls("sbatch"), IsEmpty());
}

TEST_F(SubmissionTest, DryRunWorksWithoutSlurmAndSubmittingNamesSbatch) {
  for (const char* name : {"sbatch", "srun", "sinfo", "scontrol", "squeue", "scancel"})
    site_.remove_program(name);
  EXPECT_THAT(submit({.nodes = 2, .dry_run = true}).script, HasSubstr("exec "));
  EXPECT_THAT(refusal({.nodes = 2}), HasSubstr("sbatch is not on PATH"));
}

TEST_F(SubmissionTest, ImpossibleLayouts) {
  const std::string three = refusal({.nodes = 3});
  EXPECT_THAT(three, HasSubstr("3 nodes x 1 ranks"));
  EXPECT_THAT(three, HasSubstr("nodes 2 would"));
  EXPECT_THAT(refusal({.nodes = 2}, {"--tensor-model-parallel-size=4"}),
              HasSubstr("tensor-model-parallel-size 4"));
  EXPECT_THAT(refusal({.nodes = 0}), HasSubstr("nodes 0"));
  EXPECT_THAT(refusal({.nodes = 4'000'000'000}), HasSubstr("nodes 4000000000"));
  EXPECT_THAT(refusal({.nodes = 2, .min_nodes = 4}), HasSubstr("min-nodes 4"));
  EXPECT_THAT(refusal({.nodes = 2, .time = "soon"}), HasSubstr("'soon'"));
  EXPECT_THAT(refusal({.nodes = 2, .memory = "much"}), HasSubstr("'much'"));
  EXPECT_THAT(refusal({.nodes = 2, .program = "phalanx"}), HasSubstr("program phalanx must be"));
  EXPECT_THAT(refusal({.nodes = 2, .program = "/none"}), HasSubstr("program /none must be"));
}

TEST_F(SubmissionTest, RunsThatCouldNotGoOn) {
  EXPECT_THAT(refusal({.nodes = 1}, {"--resume=never"}), HasSubstr("resume never"));
  EXPECT_THAT(refusal({.nodes = 1}, {"--exit-signals", "SIGTERM"}), HasSubstr("SIGUSR1"));
  EXPECT_THAT(refusal({.nodes = 2, .min_nodes = 1}, {"--global-batch-size=0"}),
              HasSubstr("global-batch-size 0"));
}

TEST_F(SubmissionTest, LimitsOfThePartition) {
  EXPECT_THAT(refusal({.nodes = 1, .partition = "gpu"}), HasSubstr("there are: all"));
  EXPECT_THAT(refusal({.nodes = 8}), HasSubstr("the 4 nodes of partition all"));
  EXPECT_THAT(refusal({.nodes = 1, .time = "2:00:00"}), HasSubstr("the longest is 01:00:00"));
  EXPECT_THAT(refusal({.nodes = 1, .cpus_per_rank = 3}), HasSubstr("the 2 processors"));
  EXPECT_THAT(refusal({.nodes = 1, .memory = "5000M"}), HasSubstr("the most is 4000M"));
}

TEST_F(SubmissionTest, MemoryOfTheNode) {
  const std::vector<std::string> large{"--hidden-size=1024", "--ffn-hidden-size=4096",
                                       "--num-layers=8", "--seq-length=512"};
  const std::string text = refusal({.nodes = 2, .ranks_per_node = 2, .memory = "1G"}, large);
  EXPECT_THAT(text, HasSubstr("a node has 1024 MiB"));
  EXPECT_THAT(text, HasSubstr("ranks of a node need"));
  EXPECT_THAT(text, HasSubstr("fit into 512 MiB per rank"));
  EXPECT_THAT(submit({.nodes = 2, .ranks_per_node = 1}, large).notes,
              Contains(HasSubstr("of 4000")));
}

TEST_F(SubmissionTest, OneJobPerRunFolder) {
  submit({.nodes = 1});
  job_is("RUNNING");
  EXPECT_THAT(refusal({.nodes = 1}), HasSubstr("job 101"));
  job_is("PENDING");
  EXPECT_THAT(refusal({.nodes = 1}), HasSubstr("phalanx cancel"));
  job_is("COMPLETED");
  test::write_text(stop_file_path(site_.run_dir()), "");
  const Submission again = submit({.nodes = 1});
  EXPECT_EQ(again.job, "102");
  EXPECT_FALSE(std::filesystem::exists(stop_file_path(site_.run_dir())));
  EXPECT_THAT(again.notes, Contains(HasSubstr("removed")));
  EXPECT_THAT(read_submission(site_.run_dir()).jobs, ElementsAre("101", "102"));
}

TEST_F(SubmissionTest, SlurmsOwnRefusalIsToldWhole) {
  site_.program("sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1");
  try {
    submit({.nodes = 1});
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("Invalid account"));
  }
}

TEST_F(SubmissionTest, JobsDoNotInheritTheJobTheyWereQueuedFrom) {
  site_.program("sbatch", "env > \"$FOLDER/environment\"; echo 101");
  setenv("SLURM_RESTART_COUNT", "3", 1);
  setenv("SLURM_CONF", "/etc/x", 1);
  submit({.nodes = 1});
  unsetenv("SLURM_RESTART_COUNT");
  unsetenv("SLURM_CONF");
  const std::string environment = test::file_text(site_.folder() + "/environment");
  EXPECT_THAT(environment, Not(HasSubstr("SLURM_RESTART_COUNT")));
  EXPECT_THAT(environment, HasSubstr("SLURM_CONF=/etc/x"));
}

TEST_F(SubmissionTest, DamagedRecordSaysWhatToDo) {
  test::write_text(submission_path(site_.run_dir()), "{\"options\": {");
  try {
    read_submission(site_.run_dir());
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("submit the run again"));
  }
}

TEST_F(SubmissionTest, CancelOfAWaitingJob) {
  submit({.nodes = 1});
  site_.program("scontrol",
                "[ -e \"$FOLDER/cancelled\" ] && state=CANCELLED || state=PENDING\n"
                "echo JobId=101 JobState=$state Restarts=0");
  site_.program("scancel", "touch \"$FOLDER/cancelled\"");
  std::string told;
  cancel_run(site_.run_dir(), {}, slurm_, [&](const std::string& text) { told += text + "\n"; });
  EXPECT_THAT(site_.calls("scancel"), ElementsAre("scancel 101"));
  EXPECT_THAT(told, HasSubstr("job 101 (PENDING) is cancelled"));
  EXPECT_TRUE(std::filesystem::exists(stop_file_path(site_.run_dir())));
  EXPECT_EQ(read_ledger(site_.run_dir()).back()["action"], "end");
}

TEST_F(SubmissionTest, CancelLetsRanksSaveWithinTheGrace) {
  submit({.nodes = 1});
  // It ends by itself at the second look after the stop file is there.
  site_.program("scontrol",
                "[ -e \"$RUN/STOP\" ] && echo x >> \"$FOLDER/looks\"\n"
                "state=RUNNING; [ $(cat \"$FOLDER/looks\" | wc -l) -gt 2 ] && "
                "state=COMPLETED\necho JobId=101 JobState=$state Restarts=0");
  std::string told;
  const auto tell = [&](const std::string& text) { told += text + "\n"; };
  cancel_run(site_.run_dir(), {.grace = 20}, slurm_, tell);
  EXPECT_THAT(site_.calls("scancel"), IsEmpty());
  EXPECT_THAT(told, HasSubstr("job 101: COMPLETED"));
}

TEST_F(SubmissionTest, CancelAfterTheGraceAndAtOnce) {
  submit({.nodes = 1});
  site_.program("scontrol",
                "[ -e \"$FOLDER/cancelled\" ] && state=CANCELLED || state=RUNNING\n"
                "echo JobId=101 JobState=$state Restarts=0");
  site_.program("scancel", "touch \"$FOLDER/cancelled\"");
  const auto silent = [](const std::string&) {};
  cancel_run(site_.run_dir(), {.grace = 1}, slurm_, silent);
  EXPECT_THAT(site_.calls("scancel"), SizeIs(1));
  std::filesystem::remove(site_.folder() + "/cancelled");
  cancel_run(site_.run_dir(), {.grace = 1000, .now = true}, slurm_, silent);
  EXPECT_THAT(site_.calls("scancel"), SizeIs(2));
}

TEST_F(SubmissionTest, StatusOfARunByHandNeedsNoSlurm) {
  for (const char* name : {"sbatch", "scontrol"}) site_.remove_program(name);
  RunConfig config;
  config.training.run_dir = site_.run_dir();
  config.training.train_iters = 100;
  std::string metrics;
  for (int step = 1; step <= 40; ++step)
    metrics += fmt::format(
        "{{\"iteration\": {}, \"lm_loss\": {}, \"tokens_per_second\": {}, \"step_ms\": {}}}\n",
        step, 5.0, step <= 20 ? 1 : 1000 + step, step == 40 ? 90000 : 500);
  test::write_text(metrics_path(site_.run_dir()), metrics + "{\"iteration\": 41, \"cut");
  const RunStatus status = gather_status(config, slurm_);
  EXPECT_EQ(status.step, 40);
  EXPECT_EQ(status.total_steps, 100);
  EXPECT_EQ(status.tokens_per_second, 1031);  // median of steps 21 to 40
  EXPECT_EQ(status.step_seconds, 0.5);
  EXPECT_EQ(status.seconds_left(), 30);
  EXPECT_TRUE(status.checkpoint.empty());
  EXPECT_THAT(status_text(status), HasSubstr("not handed in by `phalanx submit`"));
  EXPECT_EQ(status_json(status)["step"], 40);
}

TEST_F(SubmissionTest, StatusOfAJob) {
  submit({.nodes = 2});
  const PreparedRun prepared = run();
  job_is("RUNNING");
  EXPECT_THAT(status_text(gather_status(prepared.config, slurm_)),
              HasSubstr("101 RUNNING on node[1-2] for 0:01:40 of 00:10:00"));
  site_.program("scontrol", "echo 'Invalid job id specified' >&2; exit 1");
  EXPECT_THAT(status_text(gather_status(prepared.config, slurm_)), HasSubstr("101 is not queued"));
  site_.program("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1");
  const RunStatus status = gather_status(prepared.config, slurm_);
  EXPECT_THAT(status.slurm_problem, HasSubstr("Unable to contact"));
  EXPECT_THAT(status.events, Contains(HasSubstr("job 101 submitted")));
}

}  // namespace
}  // namespace phalanx
