// `phalanx train`: options to a running training job on all MPI ranks.
#include <fmt/format.h>

#include <cmath>
#include <csignal>
#include <cstdio>
#include <optional>

#include "core/exit_codes.h"
#include "core/model/problems.h"
#include "core/train/native_stacks.h"
#include "core/train/run_training.h"
#include "core/train/run_verification.h"
#include "launch/commands.h"
#include "launch/hang_watch.h"
#include "launch/mpi_ranks.h"
#include "launch/options.h"
#include "launch/run_device.h"
#include "launch/stop_signals.h"

namespace phalanx {
namespace {

constexpr char kUsage[] =
    "usage: [mpirun -n N] phalanx train --run-dir RUN --data-path PREFIX --train-iters N "
    "[options]\n"
    "Trains a model; writes config.ini, metrics.jsonl, TensorBoard events and weights.h5 into "
    "RUN.\n"
    "Goes on from the newest good checkpoint in RUN/checkpoints if there is one (--resume).\n"
    "Ends with\n"
    "   0  all steps are done\n"
    "   1  a failure that may go well another time\n"
    "   2  wrong options or input\n"
    "  73  loss or gradient not finite --max-skipped-in-row times; saved: a start again goes on "
    "behind\n      that data\n"
    "  74  nothing went on for --hang-timeout seconds; it said which rank the others waited for\n"
    "  75  stopped by a signal, --exit-duration-in-mins or a file RUN/STOP, and saved: start again "
    "to\n      go on (without that file)\n"
    "  76  a later start of the run has taken over\n"
    "To stop it under mpirun, send mpirun SIGUSR1. At SIGTERM Open MPI's mpirun gives the ranks "
    "one\n"
    "second (--mca odls_base_sigkill_timeout for more) and ends with a code of its own.\n"
    "With --verify-layout: checks the layout instead, writes nothing and ends with 0 (the same as "
    "one\nrank) or 3 (not the same).";

struct TrainTable {
  SourceOptions sources;
  TrainOptions train;
  RunConfig config;
  OptionTable table;

  TrainTable() {
    visit_fields(sources, table);
    visit_fields(train, table);
    visit_fields(config, table);
  }
};

int verify_on_ranks(const RunConfig& config, Backend& backend, const Ranks& ranks) {
  const VerificationResult result =
      run_verification(config, backend, ranks.size, [&](const DeviceMesh& mesh) {
        return make_device_process_groups(mesh, backend, config.parallel.comm);
      });
  if (ranks.rank == 0) std::fputs(result.text.c_str(), stdout);
  return result.same ? kExitDone : kExitLayoutDiffers;
}

int exit_code(StopReason stopped, const CheckpointConfig& checkpoint) {
  if (stopped == StopReason::none) return kExitDone;
  if (stopped == StopReason::diverged) return kExitDiverged;
  // Without checkpoints there is nothing to go on from: to start again would be to start afresh.
  return checkpoint.save_interval > 0 ? kExitStopped : kExitDone;
}

int train_on_ranks(const Arguments& arguments, const Ranks& ranks) {
  TrainTable options;
  RunConfig& config = options.config;
  auto problems = apply_options(arguments, options.table, config);
  append(problems, validate(config, ranks.size));
  for (const std::string& name : config.checkpoint.exit_signals)
    if (signal_number(name) == 0)
      report(problems, "exit-signals: '{}' is not one of SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGHUP",
             name);
  if (report_problems(problems, ranks)) return kExitUsage;

  const DeviceMesh mesh(config.parallel, ranks.size);
  const auto doctor = options.train.verify_layout ? nullptr : watch_ranks(config, ranks, mesh);
  std::optional<FlightRange> starting(flight_entry(FlightKind::phase, "start the device"));
  // Before the groups, because they move what lies on the device.
  const auto backend = make_run_backend(config.training, ranks);
  check_usage(
      backend->device() == Device::cuda || !config.training.cuda_graph,
      "cuda-graph records the work of a GPU, and this run's device is the cpu; leave it out");
  if (options.train.verify_layout) return verify_on_ranks(config, *backend, ranks);
  prepare_worker_stacks();  // after the backend, which says how many threads compute
  starting.reset();
  starting.emplace(flight_entry(FlightKind::phase, "connect the ranks"));
  ProcessGroups groups = make_device_process_groups(mesh, *backend, config.parallel.comm);
  starting.reset();
  stop_on_signals(config.checkpoint.exit_signals);
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of its write, not our end
  const TrainingResult result = run_training(config, config_ini(config), *backend, groups, mesh);
  // A start that found all steps done, or was stopped before the first, has no loss to tell.
  const auto loss = [](const char* name, double value) {
    return std::isfinite(value) ? fmt::format(", {} {:.4f}", name, value) : "";
  };
  if (ranks.rank == 0)
    fmt::print("{} {} steps{}{}; everything is in {}\n",
               result.stopped == StopReason::none ? "trained" : "stopped after", result.steps,
               loss("last loss", result.final_loss),
               loss("validation loss", result.validation_loss), config.training.run_dir);
  return exit_code(result.stopped, config.checkpoint);
}

}  // namespace

int run_train(const Arguments& arguments) {
  if (wants_help(arguments)) {
    std::fputs(help_text(kUsage, TrainTable().table).c_str(), stdout);
    return 0;
  }
  hold_signals();
  return run_on_ranks([&](const Ranks& ranks) { return train_on_ranks(arguments, ranks); });
}

}  // namespace phalanx
