// `phalanx supervise`: what a job's script runs.
#include <cstdio>

#include "cluster/supervisor.h"
#include "launch/commands.h"
#include "launch/options.h"
#include "launch/prepared_run.h"

namespace phalanx {
namespace {

constexpr char kUsage[] =
    "usage: phalanx supervise --run-dir RUN\n"
    "What the script of `phalanx submit` runs inside a job: starts the ranks, passes Slurm's "
    "signals on\n"
    "to them, and when they end leaves the job ended, puts it back into the queue or hands it in "
    "again.\n"
    "RUN/ledger.jsonl says what was decided and why. It ends with the exit code of the ranks:\n"
    "  0  all steps are done                       the job ends\n"
    "  1  an error, a crashed rank (128 + signal)  started again\n"
    "  2  options or input are wrong               the job ends\n"
    " 73  loss or gradient was not finite          started again\n"
    " 74  the ranks hung                           started again\n"
    " 75  stopped and saved                        started again\n"
    " 76  a later start of the run took over       the job ends\n"
    "Two restarts in a row without a new step or a newer checkpoint end the job, and so do "
    "RUN/STOP "
    "and\n"
    "`phalanx cancel`. Nodes that failed in two starts are left out of the next one.";

}  // namespace

int run_supervise(const Arguments& arguments) {
  std::string run_dir;
  OptionTable table;
  table.group("Run");
  table("run-dir", run_dir, "folder of the run that was submitted");
  if (wants_help(arguments)) {
    std::fputs(help_text(kUsage, table).c_str(), stdout);
    return 0;
  }
  std::vector<std::string> words;
  std::vector<std::string> problems = apply_command_line(arguments, table, words);
  for (const std::string& word : words) problems.push_back("'" + word + "' belongs to no option");
  throw_problems(problems);
  check_usage(!run_dir.empty(), "--run-dir is missing: the folder of the run");
  const SubmissionRecord submission = read_submission(run_dir);
  const PreparedRun run = prepare_run(submission.train_arguments);
  Slurm slurm;
  return supervise_run(run, submission, slurm);
}

}  // namespace phalanx
