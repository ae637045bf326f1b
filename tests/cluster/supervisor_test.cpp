// The supervisor whole, with shell scripts for Slurm and for the ranks: in a process of its own,
// as in a job.
#include "cluster/supervisor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "core/exit_codes.h"
#include "core/run_files.h"
#include "core/train/ledger.h"
#include "launch/prepared_run.h"
#include "tests/cluster/fake_slurm.h"

namespace phalanx {
namespace {

using nlohmann::json;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

/// What rank 0 writes when all steps are done.
constexpr const char* kDone =
    "\necho '{\"event\": \"training_end\", \"reason\": \"done\", \"updates\": 1}' >> "
    "\"$RUN/ledger.jsonl\"";

class SupervisorTest : public testing::Test {
 protected:
  SupervisorTest() {
    site_.install_slurm();
    record_.options = {.nodes = 2, .ranks_per_node = 2};
    record_.train_arguments = test::tiny_train_arguments(site_.run_dir());
    record_.program = "/opt/phalanx";
    record_.launcher = Launcher::srun_pmix;
    record_.mpi_plugin = "pmix";
    record_.warning_seconds = 180;
    record_.jobs = {"101"};
    job_is("RUNNING", 0);
  }

  /// What the fake ranks do: lines of sh.
  void ranks(const std::string& body) {
    site_.program("srun", "case \"$*\" in *' true') exit 0;; esac\n" + body);
  }

  /// requeue ends this job as Slurm does, by SIGTERM to the supervisor.
  void job_is(const std::string& state, int restarts) {
    site_.program("scontrol",
                  "case \"$1 $2\" in\n'show hostnames') echo \"$3\" | tr , '\\n';;\n"
                  "requeue*) kill -TERM $(cat \"$FOLDER/supervisor\");;\n*) echo '" +
                      test::job_line("101", state, restarts) + "';;\nesac");
  }

  /// One start in a job on `nodes`; the supervisor's exit code.
  int supervise(int restart = 0, const std::string& nodes = "node1,node2") {
    write_submission(site_.run_dir(), record_);
    const pid_t child = fork();
    if (child == 0) {
      setenv("SLURM_JOB_ID", record_.jobs.back().c_str(), 1);
      setenv("SLURM_JOB_NODELIST", nodes.c_str(), 1);
      setenv("SLURM_JOB_PARTITION", "all", 1);
      if (restart > 0) setenv("SLURM_RESTART_COUNT", std::to_string(restart).c_str(), 1);
      test::write_text(site_.folder() + "/supervisor", std::to_string(getpid()));
      if (std::freopen((site_.folder() + "/log").c_str(), "a", stderr) == nullptr) _exit(99);
      Slurm slurm;
      try {
        _exit(supervise_run(prepare_run(record_.train_arguments), record_, slurm));
      } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        _exit(98);
      }
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  json last(const std::string& event) const {
    json found;
    for (const json& record : read_ledger(site_.run_dir()))
      if (record["event"] == event) found = record;
    return found;
  }
  std::string log() const { return test::file_text(site_.folder() + "/log"); }
  std::vector<std::string> requeues() const {
    std::vector<std::string> found;
    for (const std::string& call : site_.calls("scontrol"))
      if (call.starts_with("scontrol requeue")) found.push_back(call);
    return found;
  }

  test::FakeSite site_;
  SubmissionRecord record_;
};

TEST_F(SupervisorTest, DoneEndsTheJob) {
  ranks("echo '{\"iteration\": 10}' >> \"$RUN/metrics.jsonl\"; echo hello >&2" +
        std::string(kDone));
  EXPECT_EQ(supervise(), kExitDone);
  const auto calls = site_.calls("srun");
  ASSERT_THAT(calls, SizeIs(1));
  EXPECT_THAT(calls[0], HasSubstr("--nodes=2 --ntasks=4 --ntasks-per-node=2"));
  EXPECT_THAT(calls[0], HasSubstr("/opt/phalanx train --mock-data"));
  EXPECT_THAT(calls[0], HasSubstr("--exit-duration-in-mins 9.00"));  // of the 10:00 that are left
  EXPECT_THAT(log(), HasSubstr("hello\n"));
  EXPECT_EQ(last("attempt_begin")["attempt"], 1);
  EXPECT_EQ(last("attempt_begin")["nodes"], json({"node1", "node2"}));
  EXPECT_EQ(last("attempt_begin")["waited_seconds"], 30);
  EXPECT_EQ(last("attempt_end")["cause"], "done");
  EXPECT_EQ(last("attempt_end")["finished_step"], 10);
  EXPECT_EQ(last("decision")["action"], "end");
  EXPECT_THAT(requeues(), IsEmpty());
  EXPECT_THAT(site_.calls("sbatch"), IsEmpty());
}

TEST_F(SupervisorTest, AUsersOwnDurationStays) {
  record_.train_arguments.emplace_back("--exit-duration-in-mins=5");
  ranks(kDone);
  EXPECT_EQ(supervise(), kExitDone);
  EXPECT_THAT(site_.calls("srun")[0], Not(HasSubstr("exit-duration-in-mins 9")));
}

TEST_F(SupervisorTest, AProgramOfTheUsersIsStartedOnTheRanks) {
  record_.options.program = "/opt/in-a-container";
  ranks(kDone);
  EXPECT_EQ(supervise(), kExitDone);
  EXPECT_THAT(site_.calls("srun")[0], HasSubstr(" /opt/in-a-container train --mock-data"));
}

TEST_F(SupervisorTest, ALauncherThatSaysNothingIsNoEnd) {
  ranks("echo 'srun: error: Node failure on node2' >&2");
  EXPECT_EQ(supervise(), kExitFailed);
  EXPECT_EQ(last("attempt_end")["cause"], "node failure");
  EXPECT_EQ(last("decision")["action"], "requeue");
}

TEST_F(SupervisorTest, WrongOptionsEndTheJob) {
  ranks("exit 2");
  EXPECT_EQ(supervise(), kExitUsage);
  EXPECT_EQ(last("decision")["action"], "end");
  EXPECT_THAT(requeues(), IsEmpty());
}

TEST_F(SupervisorTest, SignalsReachTheRanksAndTheJobIsRequeued) {
  // The ranks wait for the signal that follows what Slurm sends to the supervisor.
  ranks(
      "trap 'echo got it >&2; kill $!; exit 75' USR1\nsleep 20 &\n"
      "kill -USR1 $(cat \"$FOLDER/supervisor\")\nwait");
  EXPECT_EQ(supervise(), kExitStopped);
  EXPECT_THAT(log(), HasSubstr("got it"));
  EXPECT_EQ(last("signal")["signal"], "SIGUSR1");
  EXPECT_EQ(last("attempt_end")["cause"], "signal");
  EXPECT_EQ(last("decision")["action"], "requeue");
  EXPECT_THAT(requeues(), ElementsAre("scontrol requeue 101"));
}

TEST_F(SupervisorTest, SigtermIsPassedOnAsARequestToSave) {
  job_is("COMPLETING", 0);
  ranks(
      "trap 'kill $!; exit 75' USR1\ntrap 'exit 99' TERM\nsleep 20 &\n"
      "kill -TERM $(cat \"$FOLDER/supervisor\")\nwait");
  EXPECT_EQ(supervise(), kExitStopped);
  EXPECT_EQ(last("attempt_end")["cause"], "cancelled");
  EXPECT_EQ(last("decision")["action"], "end");
  EXPECT_THAT(requeues(), IsEmpty());
}

TEST_F(SupervisorTest, WhatSlurmRequeuesIsNotRequeuedTwice) {
  job_is("COMPLETING", 1);
  ranks(
      "echo 'slurmstepd: error: *** STEP 101.0 ON node1 CANCELLED AT 0 DUE TO PREEMPTION ***' >&2; "
      "exit 75");
  EXPECT_EQ(supervise(), kExitStopped);
  EXPECT_EQ(last("attempt_end")["cause"], "preempted");
  EXPECT_EQ(last("decision")["action"], "requeue");
  EXPECT_THAT(requeues(), IsEmpty());
  EXPECT_THAT(site_.calls("sbatch"), IsEmpty());
}

TEST_F(SupervisorTest, CrashedRankIsNamed) {
  ranks(
      "echo 'srun: error: node2: task 3: Killed' >&2\n"
      "echo 'srun: error: node1: tasks 0-1: Terminated' >&2\nexit 143");
  EXPECT_EQ(supervise(), 143);
  EXPECT_EQ(last("attempt_end")["cause"], "rank crash");
  EXPECT_EQ(last("attempt_end")["nodes_failed"], json({"node2"}));
  EXPECT_THAT(requeues(), SizeIs(1));
}

TEST_F(SupervisorTest, WithoutRequeueANewJobIsQueued) {
  record_.options.requeue = false;
  ranks("exit 75");
  EXPECT_EQ(supervise(), kExitStopped);
  EXPECT_EQ(last("decision")["action"], "resubmit");
  EXPECT_THAT(requeues(), IsEmpty());
  EXPECT_THAT(site_.calls("sbatch"), ElementsAre("sbatch --parsable --dependency=afterany:101 " +
                                                 site_.run_dir() + "/submit.sbatch"));
  EXPECT_EQ(last("submitted")["job"], "101");  // what the fake sbatch answers first
  EXPECT_THAT(read_submission(site_.run_dir()).jobs, SizeIs(2));
}

TEST_F(SupervisorTest, ANodeThatFailsTwiceIsExcluded) {
  ranks(
      "n=$(cat \"$RUN/metrics.jsonl\" 2>/dev/null | wc -l)\n"
      "echo \"{\\\"iteration\\\": $((n + 1))}\" >> \"$RUN/metrics.jsonl\"\n"
      "echo 'srun: error: node2: task 3: Killed' >&2; exit 137");
  supervise();
  EXPECT_EQ(last("decision")["action"], "requeue");
  supervise(1);
  EXPECT_EQ(last("decision")["action"], "resubmit");
  EXPECT_THAT(site_.calls("sbatch"),
              Contains(HasSubstr("--exclude=node2 --dependency=afterany:101")));
  EXPECT_EQ(last("submitted")["excluded"], json({"node2"}));
}

TEST_F(SupervisorTest, TwoRestartsWithoutProgressEnd) {
  ranks("exit 1");
  supervise();
  EXPECT_EQ(last("decision")["action"], "requeue");
  supervise(1);
  EXPECT_EQ(last("decision")["action"], "requeue");
  supervise(2);
  EXPECT_EQ(last("decision")["action"], "end");
  EXPECT_THAT(last("decision")["reason"].get<std::string>(), HasSubstr("two restarts"));
  EXPECT_EQ(last("attempt_end")["attempt"], 3);
  EXPECT_THAT(requeues(), SizeIs(2));
}

TEST_F(SupervisorTest, SlurmsOwnRequeuesWithoutProgressEndToo) {
  ranks(
      "echo 'slurmstepd: error: *** STEP 101.0 ON node1 CANCELLED AT 0 DUE TO PREEMPTION ***' >&2; "
      "exit 75");
  for (int start = 0; start < 3; ++start) {
    job_is("COMPLETING", start + 1);
    supervise(start);
    EXPECT_EQ(last("decision")["action"], "requeue") << start;
  }
  EXPECT_EQ(supervise(3), kExitStopped);
  EXPECT_EQ(last("decision")["action"], "end");
  EXPECT_THAT(last("decision")["reason"].get<std::string>(), HasSubstr("two restarts"));
  EXPECT_EQ(last("attempt_begin")["attempt"], 3) << "there is no fourth start";
  EXPECT_THAT(requeues(), IsEmpty());
}

TEST_F(SupervisorTest, ANodeThatFailedInTwoRequeuesOfSlurmIsLeft) {
  record_.options.sbatch_options = {"exclude=node[3-4]"};
  ranks("echo 'srun: error: Node failure on node2' >&2; exit 143");
  for (int start = 0; start < 2; ++start) {
    job_is("COMPLETING", start + 1);
    supervise(start);
    EXPECT_THAT(site_.calls("sbatch"), IsEmpty()) << start;
  }
  record_.options.nodes = 1;  // so that enough are left
  EXPECT_EQ(supervise(2), kExitStopped);
  EXPECT_EQ(last("attempt_begin")["attempt"], 2) << "there is no third start";
  EXPECT_EQ(last("decision")["action"], "resubmit");
  EXPECT_EQ(last("decision")["excluded"], json({"node2"}));
  EXPECT_THAT(site_.calls("sbatch"), Contains(HasSubstr("--exclude=node2,node3,node4 ")))
      << "what the user left out stays out";
}

TEST_F(SupervisorTest, ACheckpointIsProgress) {
  ranks(
      "n=$(ls \"$RUN/checkpoints\" 2>/dev/null | wc -l)\n"
      "d=\"$RUN/checkpoints/iter_000000$((n + 1))\"; mkdir -p \"$d\"; touch \"$d/COMMITTED\"; exit "
      "1");
  for (int restart = 0; restart < 4; ++restart) supervise(restart);
  EXPECT_EQ(last("decision")["action"], "requeue");
  EXPECT_EQ(last("attempt_end")["durable_step"], 4);
}

TEST_F(SupervisorTest, NeighbouringStartsOfAJobHaveStepsOfOtherNumbers) {
  ranks(kDone);
  supervise(2);
  const auto calls = site_.calls("srun");
  ASSERT_THAT(calls, SizeIs(3));
  EXPECT_THAT(calls[0], HasSubstr("--mpi=none"));
  EXPECT_THAT(calls[1], HasSubstr("--mpi=none"));
  EXPECT_THAT(calls[2], HasSubstr("phalanx train"));
}

TEST_F(SupervisorTest, StopFileEndsAndKeepsFromStarting) {
  ranks("touch \"$RUN/STOP\"; exit 75");
  EXPECT_EQ(supervise(), kExitStopped);
  EXPECT_EQ(last("attempt_end")["cause"], "stop file");
  EXPECT_EQ(last("decision")["action"], "end");
  EXPECT_EQ(supervise(1), kExitStopped);
  EXPECT_THAT(site_.calls("srun"), SizeIs(1));
  EXPECT_THAT(requeues(), IsEmpty());
}

TEST_F(SupervisorTest, LargestPartOfTheAllocationThatSuits) {
  record_.options = {.nodes = 4, .min_nodes = 1, .ranks_per_node = 2};
  ranks(kDone);
  supervise(0, "node1,node2,node3");  // 6 ranks do not divide a batch of 8
  EXPECT_THAT(site_.calls("srun")[0], HasSubstr("--nodes=2 --ntasks=4"));
  EXPECT_THAT(site_.calls("srun")[0], HasSubstr("--nodelist=node1,node2"));
}

TEST_F(SupervisorTest, AStartThatWroteNoEndIsANodeFailure) {
  Ledger ledger(site_.run_dir());
  ledger.write("attempt_begin", {{"attempt", 1}, {"nodes", {"node2", "node3"}}});
  ranks("echo '{\"iteration\": 3}' >> \"$RUN/metrics.jsonl\"" + std::string(kDone));
  supervise(1);
  EXPECT_EQ(last("attempt_begin")["attempt"], 2);
  EXPECT_EQ(last("attempt_begin")["previous_nodes_failed"], json({"node2"}));  // the batch host
  // Where Slurm had told it to end there is nobody to blame.
  ledger.write("attempt_begin", {{"attempt", 3}, {"nodes", {"node2", "node3"}}});
  ledger.write("signal", {{"signal", "SIGTERM"}});
  supervise(2);
  EXPECT_EQ(last("attempt_begin")["attempt"], 4);
  EXPECT_EQ(last("attempt_begin")["previous_nodes_failed"], json::array());
}

TEST_F(SupervisorTest, StartsWithoutEndDoNotGoRoundForEver) {
  Ledger ledger(site_.run_dir());
  for (int attempt = 1; attempt <= 3; ++attempt)
    ledger.write(
        "attempt_begin",
        {{"attempt", attempt}, {"nodes", {"node2"}}, {"finished_step", 0}, {"durable_step", -1}});
  EXPECT_EQ(supervise(3), kExitStopped);
  EXPECT_THAT(site_.calls("srun"), IsEmpty());
  EXPECT_EQ(last("decision")["action"], "end");
}

TEST_F(SupervisorTest, OutsideOfAJobItSaysSo) {
  write_submission(site_.run_dir(), record_);
  unsetenv("SLURM_JOB_ID");
  Slurm slurm;
  EXPECT_THROW(supervise_run(prepare_run(record_.train_arguments), record_, slurm), UsageError);
}

}  // namespace
}  // namespace phalanx
