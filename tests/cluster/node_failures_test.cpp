// Which node was the first to fail, from what launchers really print.
#include "cluster/node_failures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace phalanx {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

ErrorLines read(const std::vector<std::string>& lines) {
  ErrorLines errors;
  for (const std::string& line : lines) errors.add(line);
  return errors;
}

TEST(NodeFailures, KilledRankUnderSrun) {
  const ErrorLines errors =
      read({"srun: error: node2: task 3: Killed",
            "srun: launch/slurm: _step_signal: Terminating StepId=5.0",
            "slurmstepd-node1: error: *** STEP 5.0 ON node1 CANCELLED AT 2026-11-21T17:23:16 ***",
            "srun: error: node2: task 2: Killed", "srun: error: node1: tasks 0-1: Killed"});
  EXPECT_THAT(errors.crashed_nodes(), ElementsAre("node2"));
  EXPECT_THAT(errors.lost_nodes(), IsEmpty());
  EXPECT_EQ(errors.rank_exit_code(), std::nullopt);
  EXPECT_EQ(errors.text(), "srun: error: node2: task 3: Killed");
  EXPECT_EQ(errors.slurm_reason(), "");
}

TEST(NodeFailures, TerminatedIsNoCrash) {
  const ErrorLines errors = read({"srun: error: node1: tasks 0-1: Terminated",
                                  "srun: error: node2: task 2: Segmentation fault (core dumped)"});
  EXPECT_THAT(errors.crashed_nodes(), ElementsAre("node2"));
}

TEST(NodeFailures, ARanksOwnErrorIsNoFaultOfTheNodesThatAreKilledThen) {
  const ErrorLines errors =
      read({"phalanx: rank 0 of 2: cannot read /data/a.bin", "srun: error: node2: task 1: Killed",
            "srun: error: node1: task 0: Exited with exit code 1"});
  EXPECT_THAT(errors.crashed_nodes(), IsEmpty());
  EXPECT_EQ(errors.text(), "phalanx: rank 0 of 2: cannot read /data/a.bin");
}

TEST(NodeFailures, OwnExitCodeBeforeThatOfKilledOnes) {
  const ErrorLines errors = read({"phalanx: rank 3 of 4: loss is not finite",
                                  "srun: error: node2: task 3: Exited with exit code 73",
                                  "srun: error: node1: tasks 0-1: Killed"});
  EXPECT_EQ(errors.rank_exit_code(), 73);
  EXPECT_EQ(errors.text(), "phalanx: rank 3 of 4: loss is not finite");
  EXPECT_EQ(read({"srun: error: node2: task 3: Exited with exit code 1"}).rank_exit_code(),
            std::nullopt);
}

TEST(NodeFailures, HangNamesItsNodes) {
  const ErrorLines errors =
      read({"phalanx: hang: nothing went on for 31 s at step 12",
            "phalanx: hang: rank 5 on node3 has not entered reduce-scatter #412 of dp",
            "phalanx: hang: rank 6 on node3: it is in `read x`",
            "phalanx: hang: rank 9 on node5, which waits on nobody"});
  EXPECT_THAT(errors.hung_nodes(), ElementsAre("node3", "node5"));
  EXPECT_EQ(errors.text(),
            "phalanx: hang: rank 5 on node3 has not entered reduce-scatter #412 of dp");
}

TEST(NodeFailures, HangOfManyRanksNamesTheirNode) {
  const ErrorLines errors = read({"phalanx: hang: ranks 8-15 on node2 do not answer"});
  EXPECT_THAT(errors.hung_nodes(), ElementsAre("node2"));
}

TEST(NodeFailures, LostNodes) {
  EXPECT_THAT(read({"srun: error: Node failure on node[2-3]"}).lost_nodes(),
              ElementsAre("node2", "node3"));
  const ErrorLines mpirun = read({"ORTE has lost communication with a remote daemon.", "",
                                  "  HNP daemon   : [[1,0],0] on node node1",
                                  "  Remote daemon: [[1,0],2] on node node4", ""});
  EXPECT_THAT(mpirun.lost_nodes(), ElementsAre("node4"));
}

TEST(NodeFailures, MpirunNoticesASignal) {
  const ErrorLines errors =
      read({"mpirun noticed that process rank 1 with PID 0 on node node2 "
            "exited on signal 9 (Killed)."});
  EXPECT_THAT(errors.crashed_nodes(), ElementsAre("node2"));
}

TEST(NodeFailures, ReasonsOfSlurm) {
  const auto reason = [](const std::string& why) {
    return read({"slurmstepd: error: *** STEP 5.0 ON node1 CANCELLED AT 2026-01-31T00:00:00 DUE "
                 "TO " +
                 why + " ***"})
        .slurm_reason();
  };
  EXPECT_EQ(reason("TIME LIMIT"), "TIME LIMIT");
  EXPECT_EQ(reason("PREEMPTION"), "PREEMPTION");
  EXPECT_EQ(reason("NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS"), "NODE FAILURE");
  EXPECT_EQ(reason("JOB REQUEUE"), "JOB REQUEUE");
  EXPECT_EQ(reason("SOMETHING ELSE"), "");
}

TEST(NodeFailures, AnyTextIsSafe) {
  ErrorLines errors;
  for (const char* line :
       {"", "error: ", "error: : task", "phalanx: hang: rank ", "Node failure on ",
        "exited on signal", "srun: error: a b: task 1: Killed", " CANCELLED AT "})
    errors.add(line);
  errors.add(std::string(1 << 20, '['));
  errors.add("Node failure on n[1-99999999999]");
  EXPECT_THAT(errors.hung_nodes(), IsEmpty());
}

}  // namespace
}  // namespace phalanx
