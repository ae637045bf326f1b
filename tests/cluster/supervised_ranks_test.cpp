// The launcher as a child: lines, exit codes, and one that does not end while Slurm ends the job.
#include "cluster/supervised_ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "cluster/external_command.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const RanksWatch kNobody{.on_signal = [](const char*) {}, .is_ending = [] { return false; }};

TEST(SupervisedRanks, ExitCodesAndTheLastLineWithoutABreak) {
  SignalInbox inbox;
  EXPECT_EQ(run_ranks({"/bin/sh", "-c", "exit 7"}, inbox, kNobody).exit_code, 7);
  EXPECT_EQ(run_ranks({"/bin/sh", "-c", "kill -9 $$"}, inbox, kNobody).exit_code, 128 + 9);
  const RanksEnd end = run_ranks(
      {"/bin/sh", "-c", "printf 'srun: error: node2: task 1: Killed' >&2"}, inbox, kNobody);
  EXPECT_THAT(end.lines.crashed_nodes(), ElementsAre("node2"));
}

TEST(SupervisedRanks, MoreThanAPipeHolds) {
  SignalInbox inbox;
  testing::internal::CaptureStderr();
  run_ranks({"/bin/sh", "-c",
             "i=0; while [ $i -lt 4000 ]; do echo \"line $i of a long log of all "
             "ranks, which nobody reads but this\" >&2; i=$((i+1)); done"},
            inbox, kNobody);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("line 3999 "));
}

TEST(SupervisedRanks, AStuckLauncherIsKilledOnlyWhileTheJobEnds) {
  using Clock = std::chrono::steady_clock;
  SignalInbox inbox;
  int asked = 0;
  std::vector<std::string> signals;
  const RanksWatch watch{.on_signal = [&](const char* name) { signals.emplace_back(name); },
                         .is_ending = [&] { return ++asked == 2; },
                         .patience_seconds = 0.2};
  // To this thread alone, once the shell below has set its trap.
  std::thread slurm([thread = pthread_self()] {
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    pthread_kill(thread, SIGTERM);
  });
  const auto begin = Clock::now();
  const RanksEnd end =
      run_ranks({"/bin/sh", "-c", "trap '' USR1; while :; do sleep 0.05; done"}, inbox, watch);
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  slurm.join();
  EXPECT_EQ(end.exit_code, 128 + 9);
  EXPECT_TRUE(end.ended_by_slurm);
  EXPECT_EQ(asked, 2);
  EXPECT_THAT(signals, ElementsAre("SIGTERM"));
  EXPECT_GE(seconds, 0.5 + 2 * 0.2);
}

TEST(ExternalCommand, OutputErrorAndExitCode) {
  const CommandResult result = run_command({"/bin/sh", "-c", "echo out; echo err >&2; exit 3"}, 10);
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_EQ(result.output, "out\n");
  EXPECT_EQ(result.error, "err\n");
}

TEST(ExternalCommand, WordsAreNoShellText) {
  EXPECT_EQ(run_command({"/bin/echo", "$HOME `x` 'a b'", ""}, 10).output, "$HOME `x` 'a b' \n");
  EXPECT_EQ(command_text({"a", "b c", "d'e", ""}), "a 'b c' 'd'\\''e' ''");
}

TEST(ExternalCommand, OneThatDoesNotEndIsKilledAndNamed) {
  try {
    run_command({"/bin/sh", "-c", "sleep 30"}, 0.3);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("sleep 30"));
    EXPECT_THAT(error.what(), HasSubstr("0.3 s"));
  }
}

TEST(ExternalCommand, AChildThatLivesOnDoesNotHoldUs) {
  EXPECT_EQ(run_command({"/bin/sh", "-c", "sleep 5 & echo done"}, 4).output, "done\n");
}

TEST(ExternalCommand, MissingProgram) {
  EXPECT_EQ(find_program("no-such-program-here"), "");
  EXPECT_THROW(run_command({"no-such-program-here"}, 1), Error);
}

}  // namespace
}  // namespace phalanx
