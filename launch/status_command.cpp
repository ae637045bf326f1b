// `phalanx status`: how a run is doing.
#include <cstdio>

#include "cluster/run_status.h"
#include "launch/commands.h"
#include "launch/options.h"
#include "launch/run_folder.h"

namespace phalanx {
namespace {

constexpr char kUsage[] =
    "usage: phalanx status RUN [--json]\n"
    "Job, nodes, step, tokens/s, time left, newest checkpoint, last events, and where the time of "
    "all\n"
    "starts went. Also for runs that Slurm did not start, and where Slurm is not installed.\n"
    "Ends with 0, or 2 if there is no such run.";

}  // namespace

int run_status(const Arguments& arguments) {
  bool json = false;
  OptionTable table;
  table.group("Status");
  table("json", json, "print one JSON object");
  if (wants_help(arguments)) {
    std::fputs(help_text(kUsage, table).c_str(), stdout);
    return 0;
  }
  const std::string run_dir = run_folder_argument(arguments, table, "status");
  Slurm slurm;
  const RunStatus status = gather_status(config_of_run(run_dir), slurm);
  std::fputs((json ? status_json(status).dump(2) + "\n" : status_text(status)).c_str(), stdout);
  return 0;
}

}  // namespace phalanx
