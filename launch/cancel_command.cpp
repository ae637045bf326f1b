// `phalanx cancel`: ends a run for good.
#include <cstdio>

#include "cluster/cancellation.h"
#include "launch/commands.h"
#include "launch/options.h"
#include "launch/run_folder.h"

namespace phalanx {
namespace {

constexpr char kUsage[] =
    "usage: phalanx cancel RUN [--grace SECONDS] [--now]\n"
    "Writes RUN/STOP: the ranks save and end at their next step, and nothing starts them again. A "
    "job\n"
    "that waits in the queue is cancelled; one that runs is waited for, and cancelled after the "
    "grace.\n"
    "`phalanx submit` takes the run up again from its newest checkpoint.\n"
    "Ends with 0 when no job of the run is left, 1 if Slurm failed, 2 if there is no such run.";

}  // namespace

int run_cancel(const Arguments& arguments) {
  CancelOptions options;
  OptionTable table;
  table.group("Cancel");
  table("grace", options.grace, "seconds for a running job to save and end by itself");
  table("now", options.now,
        "cancel a running job at once: what it did since its last checkpoint "
        "is lost");
  if (wants_help(arguments)) {
    std::fputs(help_text(kUsage, table).c_str(), stdout);
    return 0;
  }
  const std::string run_dir = run_folder_argument(arguments, table, "cancel");
  check_usage(options.grace >= 0, "--grace ", options.grace, " is negative; the nearest is 0");
  Slurm slurm;
  cancel_run(run_dir, options, slurm, [](const std::string& sentence) {
    std::printf("%s\n", sentence.c_str());
    std::fflush(stdout);
  });
  return 0;
}

}  // namespace phalanx
