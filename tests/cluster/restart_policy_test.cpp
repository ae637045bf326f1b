// Why a start ended and what follows from it: a table of every rule.
#include "cluster/restart_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cluster/slurm_text.h"
#include "core/exit_codes.h"
#include "tests/cluster/fake_slurm.h"

namespace phalanx {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Action = Decision::Action;

SlurmJob job(const std::string& state, int restarts = 0) {
  return parse_job(test::job_line("7", state, restarts));
}

SlurmJob job_at(int64_t run_seconds) {
  SlurmJob result = job("RUNNING");
  result.run_seconds = run_seconds;  // of 600
  return result;
}

SlurmJob preempted_job() {
  SlurmJob result = job("COMPLETING");
  result.preempted = true;
  return result;
}

struct Ending {
  const char* what;
  EndFacts facts;
  std::vector<std::string> lines;
  std::string cause;
  std::vector<std::string> nodes_failed;
  Action action;  // with requeue allowed
};

const std::vector<std::string> kNodes{"node1", "node2"};
constexpr const char* kKilled = "srun: error: node2: task 3: Killed";
constexpr const char* kStep = "slurmstepd: error: *** STEP 7.0 ON node1 CANCELLED AT 0 DUE TO ";

std::vector<Ending> endings() {
  const auto requeue = Action::requeue;
  const auto end = Action::end;
  return {
      {"done",
       {.launcher_exit_code = 0, .stop_reason = "done", .job = job("RUNNING")},
       {},
       cause::kDone,
       {},
       end},
      {"usage", {.launcher_exit_code = 2, .job = job("RUNNING")}, {}, cause::kUsage, {}, end},
      {"usage, the others killed",
       {.launcher_exit_code = 137, .job = job("RUNNING")},
       {"srun: error: node1: task 0: Exited with exit code 2", kKilled},
       cause::kUsage,
       {},
       end},
      {"fenced", {.launcher_exit_code = 76, .job = job("RUNNING")}, {}, cause::kFenced, {}, end},
      {"stop file",
       {.launcher_exit_code = 75,
        .stop_reason = "stop_file",
        .stop_file = true,
        .job = job("RUNNING")},
       {},
       cause::kStopFile,
       {},
       end},
      {"stop file, and nothing was saved",
       {.launcher_exit_code = 0,
        .stop_reason = "stop_file",
        .stop_file = true,
        .job = job("RUNNING")},
       {},
       cause::kStopFile,
       {},
       end},
      {"time limit, told by the trainer",
       {.launcher_exit_code = 75, .stop_reason = "duration", .job = job("RUNNING")},
       {},
       cause::kTimeLimit,
       {},
       requeue},
      {"time limit, told by Slurm's signal",
       {.launcher_exit_code = 75,
        .stop_reason = "signal",
        .warned = true,
        .warning_seconds = 180,
        .job = job_at(400)},
       {},
       cause::kTimeLimit,
       {},
       requeue},
      {"somebody's signal",
       {.launcher_exit_code = 75,
        .stop_reason = "signal",
        .warned = true,
        .warning_seconds = 180,
        .job = job_at(100)},
       {},
       cause::kSignal,
       {},
       requeue},
      {"over the time limit",
       {.launcher_exit_code = 137, .ended_by_slurm = true, .job = job("COMPLETING")},
       {std::string(kStep) + "TIME LIMIT ***"},
       cause::kTimeLimit,
       {},
       requeue},
      {"scancel, saved",
       {.launcher_exit_code = 75, .ended_by_slurm = true, .job = job("COMPLETING")},
       {},
       cause::kCancelled,
       {},
       end},
      {"scancel, killed",
       {.launcher_exit_code = 137, .ended_by_slurm = true, .job = job("COMPLETING")},
       {kKilled},
       cause::kCancelled,
       {},
       end},
      {"SIGTERM to the job alone",
       {.launcher_exit_code = 75, .ended_by_slurm = true, .job = job("RUNNING")},
       {},
       cause::kSignal,
       {},
       requeue},
      {"SIGTERM, and Slurm does not answer: it must not come back if it was scancel",
       {.launcher_exit_code = 75, .ended_by_slurm = true},
       {},
       cause::kCancelled,
       {},
       end},
      {"preempted and requeued",
       {.launcher_exit_code = 75, .ended_by_slurm = true, .job = job("COMPLETING", 1)},
       {std::string(kStep) + "PREEMPTION ***"},
       cause::kPreempted,
       {},
       requeue},
      {"preempted, not requeued",
       {.launcher_exit_code = 75, .ended_by_slurm = true, .job = preempted_job()},
       {},
       cause::kPreempted,
       {},
       requeue},
      {"scontrol requeue",
       {.launcher_exit_code = 75, .ended_by_slurm = true, .job = job("COMPLETING", 1)},
       {std::string(kStep) + "JOB REQUEUE ***"},
       cause::kRequeued,
       {},
       requeue},
      {"a node is lost, Slurm requeues",
       {.launcher_exit_code = 143,
        .ended_by_slurm = true,
        .job = job("COMPLETING", 1),
        .nodes_out = {"node2"}},
       {std::string(kStep) + "NODE FAILURE ***"},
       cause::kNodeFailure,
       {"node2"},
       requeue},
      {"a node is lost, srun says 0",
       {.launcher_exit_code = 0, .ended_by_slurm = true, .job = job("COMPLETING")},
       {"srun: error: Node failure on node2",
        "srun: error: Timed out waiting for job step to complete"},
       cause::kNodeFailure,
       {"node2"},
       requeue},
      {"srun says 0 and the trainer nothing",
       {.launcher_exit_code = 0, .job = job("RUNNING")},
       {},
       cause::kError,
       {},
       requeue},
      {"a node is lost, before Slurm knows",
       {.launcher_exit_code = 143, .job = job("RUNNING")},
       {"srun: error: Node failure on node2", "srun: error: node1: task 0: Killed"},
       cause::kNodeFailure,
       {"node2"},
       requeue},
      {"a node is down and the ranks failed",
       {.launcher_exit_code = 1, .job = job("RUNNING"), .nodes_out = {"node1"}},
       {},
       cause::kNodeFailure,
       {"node1"},
       requeue},
      {"killed rank",
       {.launcher_exit_code = 137, .job = job("RUNNING")},
       {kKilled, "srun: error: node1: task 0: Killed"},
       cause::kRankCrash,
       {"node2"},
       requeue},
      {"a name in a message that is no node of the job",
       {.launcher_exit_code = 137, .job = job("RUNNING")},
       {"srun: error: node9: task 3: Killed"},
       cause::kRankCrash,
       {},
       requeue},
      {"hang",
       {.launcher_exit_code = 137, .job = job("RUNNING")},
       {"phalanx: hang: rank 3 on node2 has not entered all-reduce #4 of dp",
        "srun: error: node1: task 0: Exited with exit code 74", kKilled},
       cause::kHang,
       {"node2"},
       requeue},
      {"stopped without checkpoints",
       {.launcher_exit_code = 0, .stop_reason = "signal", .job = job("RUNNING")},
       {},
       cause::kSignal,
       {},
       requeue},
      {"diverged",
       {.launcher_exit_code = 73, .stop_reason = "diverged", .job = job("RUNNING")},
       {},
       cause::kDiverged,
       {},
       requeue},
      {"diverged at once",
       {.launcher_exit_code = 73,
        .stop_reason = "diverged",
        .updated = false,
        .job = job("RUNNING")},
       {},
       cause::kDiverged,
       {},
       end},
      {"error",
       {.launcher_exit_code = 1, .job = job("RUNNING")},
       {"phalanx: rank 1 of 2: read failed"},
       cause::kError,
       {},
       requeue},
  };
}

TEST(RestartPolicy, EveryEnding) {
  for (const Ending& ending : endings()) {
    SCOPED_TRACE(ending.what);
    EndFacts facts = ending.facts;
    facts.nodes = kNodes;
    ErrorLines lines;
    for (const std::string& line : ending.lines) lines.add(line);
    const AttemptEnd end = judge_end(facts, lines);
    EXPECT_EQ(end.cause, ending.cause);
    EXPECT_EQ(end.nodes_failed, ending.nodes_failed);
    EXPECT_EQ(end.slurm_requeues, facts.job && facts.job->restarts > 0);
    const Decision decision = decide_restart({}, end, {.requeue = true});
    EXPECT_EQ(decision.action, ending.action) << decision.reason;
    EXPECT_FALSE(decision.reason.empty());
    if (ending.action == Action::end || end.slurm_requeues) continue;
    EXPECT_EQ(decide_restart({}, end, {.requeue = false}).action, Action::resubmit);
  }
}

Record submitted(const char* reason = kSubmittedByUser) {
  return {{"event", "submitted"}, {"reason", reason}};
}
Record begin(int64_t finished, int64_t durable) {
  return {{"event", "attempt_begin"}, {"finished_step", finished}, {"durable_step", durable}};
}
Record end_at(int64_t finished, int64_t durable, std::vector<std::string> failed = {}) {
  return {{"event", "attempt_end"},
          {"finished_step", finished},
          {"durable_step", durable},
          {"nodes_failed", std::move(failed)}};
}

TEST(RestartPolicy, WhatSavesNothingIsNotStartedAfresh) {
  const Records ledger{submitted(), begin(0, -1), end_at(7, -1)};
  const AttemptEnd end{.exit_code = kExitStopped, .cause = cause::kTimeLimit};
  EXPECT_EQ(decide_restart(ledger, end, {}).action, Action::requeue);
  const Decision decision = decide_restart(ledger, end, {.saves = false});
  EXPECT_EQ(decision.action, Action::end);
  EXPECT_THAT(decision.reason, HasSubstr("--save-interval 0"));
}

TEST(RestartPolicy, TwoRestartsWithoutProgressEnd) {
  Records ledger{submitted(), begin(0, -1), end_at(0, -1)};
  EXPECT_FALSE(two_restarts_without_progress(ledger));
  ledger.insert(ledger.end(), {begin(0, -1), end_at(0, -1)});
  EXPECT_FALSE(two_restarts_without_progress(ledger));  // one restart
  ledger.insert(ledger.end(), {begin(0, -1), end_at(0, -1)});
  EXPECT_TRUE(two_restarts_without_progress(ledger));
  const Decision decision =
      decide_restart(ledger, {.exit_code = 1, .cause = cause::kError, .text = "disk"}, {});
  EXPECT_EQ(decision.action, Action::end);
  EXPECT_THAT(decision.reason, HasSubstr("two restarts"));
  EXPECT_THAT(decision.reason, HasSubstr("disk"));
  // Asked for again by a person: it may try again.
  ledger.insert(ledger.end(), {submitted(), begin(0, -1), end_at(0, -1)});
  EXPECT_FALSE(two_restarts_without_progress(ledger));
}

TEST(RestartPolicy, ResubmissionBySupervisorKeepsTheCount) {
  const Records ledger{
      submitted(),  begin(0, -1),  end_at(0, -1),           submitted("rank crash"),
      begin(0, -1), end_at(0, -1), submitted("rank crash"), begin(0, -1),
      end_at(0, -1)};
  EXPECT_TRUE(two_restarts_without_progress(ledger));
}

TEST(RestartPolicy, AnyProgressStartsTheCountAgain) {
  const auto stuck_after = [](const Record& middle_end) {
    return two_restarts_without_progress({submitted(), begin(10, 5), end_at(10, 5), begin(10, 5),
                                          middle_end, begin(10, 5), end_at(10, 5)});
  };
  EXPECT_TRUE(stuck_after(end_at(10, 5)));
  EXPECT_FALSE(stuck_after(end_at(11, 5)));  // a new step
  EXPECT_FALSE(stuck_after(end_at(10, 6)));  // a newer checkpoint
  EXPECT_TRUE(stuck_after(end_at(9, 5)));    // steps done again are none
}

TEST(RestartPolicy, StartsThatWroteNoEndCount) {
  const Records lost{submitted(), begin(3, 2), begin(3, 2), begin(3, 2), end_at(3, 2)};
  EXPECT_TRUE(two_restarts_without_progress(lost));
  const Records moved{submitted(), begin(3, 2), begin(3, 2), begin(4, 2), end_at(4, 2)};
  EXPECT_FALSE(two_restarts_without_progress(moved));
}

const AttemptEnd kCrash{.exit_code = 137, .cause = cause::kRankCrash, .nodes_failed = {"node2"}};

TEST(RestartPolicy, NodesThatFailedTwiceAreExcluded) {
  Records ledger{submitted(), begin(0, -1), end_at(5, -1, {"node2"})};
  EXPECT_EQ(decide_restart(ledger, kCrash, {}).action, Action::requeue);
  ledger.insert(ledger.end(), {begin(5, -1), end_at(9, -1, {"node2", "node1"})});
  EXPECT_THAT(nodes_failed_twice(ledger), ElementsAre("node2"));
  const RestartFacts facts{
      .requeue = true, .least_nodes = 2, .usable_nodes = {"node1", "node2", "node3"}};
  const Decision decision = decide_restart(ledger, kCrash, facts);
  EXPECT_EQ(decision.action, Action::resubmit);
  EXPECT_THAT(decision.excluded, ElementsAre("node2"));
  EXPECT_THAT(decision.reason, HasSubstr("node2 failed twice"));
  // The new job has it excluded already: a plain requeue does.
  Record again = submitted("node2 failed twice");
  again["excluded"] = {"node2"};
  ledger.insert(ledger.end(), {again, begin(9, -1), end_at(12, -1, {"node3"})});
  const Decision next = decide_restart(ledger, kCrash, facts);
  EXPECT_EQ(next.action, Action::requeue);
  // And stays excluded where that job is handed in anew.
  EXPECT_THAT(decide_restart(ledger, kCrash, {.requeue = false}).excluded, ElementsAre("node2"));
}

TEST(RestartPolicy, ExclusionNeverLeavesTooFewNodes) {
  const Records ledger{submitted(), begin(0, -1), end_at(5, -1, {"node2"}), begin(5, -1),
                       end_at(9, -1, {"node2"})};
  const Decision decision = decide_restart(
      ledger, kCrash, {.requeue = true, .least_nodes = 2, .usable_nodes = {"node1", "node2"}});
  EXPECT_EQ(decision.action, Action::requeue);
  EXPECT_THAT(decision.excluded, IsEmpty());
  EXPECT_THAT(decision.reason, HasSubstr("only 1 nodes are left and the run needs 2"));
}

TEST(RestartPolicy, ALostSupervisorsNodeCounts) {
  Record after = begin(9, -1);
  after["previous_nodes_failed"] = {"node1"};
  EXPECT_THAT(nodes_failed_twice({end_at(5, -1, {"node1"}), after}), ElementsAre("node1"));
}

TEST(RestartPolicy, RecordsOfOtherKindsAreSafe) {
  const Records odd{{{"event", 3}},
                    {{"event", "attempt_end"}, {"nodes_failed", "node1"}},
                    {{"event", "attempt_begin"}, {"finished_step", "x"}},
                    {{"time", 1}}};
  EXPECT_FALSE(two_restarts_without_progress(odd));
  EXPECT_THAT(nodes_failed_twice(odd), IsEmpty());
}

}  // namespace
}  // namespace phalanx
