// `phalanx submit`: a training run as a job of Slurm.
#include <fmt/format.h>

#include <cstdio>

#include "cluster/external_command.h"
#include "cluster/submission.h"
#include "launch/commands.h"
#include "launch/options.h"
#include "launch/prepared_run.h"

namespace phalanx {
namespace {

constexpr char kUsage[] =
    "usage: phalanx submit --nodes 4 --ranks-per-node 8 --time 04:00:00 [options] -- --run-dir RUN "
    "[options of train]\n"
    "Checks layout, memory and the site's limits, writes RUN/submit.sbatch and queues it. The job "
    "saves\n"
    "before its time limit, goes back into the queue after an interruption and goes on from its "
    "newest\n"
    "good checkpoint, until all steps are done or two restarts in a row made no progress.\n"
    "--config before -- counts for the options of train too.\n"
    "Ends with 0 when the job is queued, 2 when something was refused (then nothing is queued), 1 "
    "when\n"
    "Slurm failed.";

struct SubmitTable {
  SubmitOptions submit;
  std::string config;
  RunConfig unused;  // no preset is asked for on this side of --
  OptionTable table;

  SubmitTable() {
    visit_fields(submit, table);
    table.group("Sources");
    table("config", config, "INI-style file of name = value lines, for submit and train");
  }
};

std::string words_of(const std::string& first, const std::string& run_dir) {
  return command_text({"phalanx", first, run_dir});
}

void print_result(const Submission& submission, const std::string& run_dir) {
  for (const std::string& note : submission.notes) fmt::print("{}\n", note);
  fmt::print("job {} is queued: {}\n", submission.job, submission.script_path);
  fmt::print("  follow:  {}\n",
             command_text({"tail", "-F", fmt::format("{}/slurm-{}.log", run_dir, submission.job)}));
  fmt::print("  state:   {}\n", words_of("status", run_dir));
  fmt::print("  stop:    {}\n", words_of("cancel", run_dir));
}

}  // namespace

int run_submit(const Arguments& arguments) {
  SubmitTable options;
  const auto [own, behind] = split_at_dashes(arguments);
  if (wants_help(own)) {
    std::fputs(help_text(kUsage, options.table).c_str(), stdout);
    return 0;
  }
  throw_problems(apply_options(own, options.table, options.unused));
  Arguments train = behind;
  if (!options.config.empty()) train.insert(train.begin(), {"--config", options.config});
  const PreparedRun run = prepare_run(train);
  Slurm slurm;
  const Submission submission = submit_run(options.submit, run, slurm);
  if (!options.submit.dry_run) {
    print_result(submission, run.config.training.run_dir);
    return 0;
  }
  for (const std::string& note : submission.notes) fmt::print(stderr, "{}\n", note);
  fmt::print("{}", submission.script);
  return 0;
}

}  // namespace phalanx
