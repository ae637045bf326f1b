// The program `phalanx`: picks the subcommand and turns exceptions into exit codes.
#include <fmt/format.h>

#include <cstdio>
#include <exception>

#include "core/train/code_version.h"
#include "kernels/base/error.h"
#include "launch/commands.h"
#include "launch/option_value.h"

namespace {

using phalanx::Arguments;

struct Command {
  const char* name;
  const char* purpose;
  int (*run)(const Arguments&);
};

int run_version(const Arguments&) {
  std::printf("phalanx %s\n", phalanx::code_version().c_str());
  return 0;
}

constexpr Command kCommands[] = {
    {"prepare", "text to token datasets; learns tokenizers", phalanx::run_prepare},
    {"train", "trains a model on one or more MPI ranks", phalanx::run_train},
    {"evaluate", "loss and perplexity of a run on held-out data", phalanx::run_evaluate},
    {"generate", "text from a run's model", phalanx::run_generate},
    {"checkpoint", "lists, checks, compares and rewrites checkpoints", phalanx::run_checkpoint},
    {"study", "how a run scales over nodes and layouts, as a report", phalanx::run_study_command},
    {"info", "parameters, FLOPs and memory of a model", phalanx::run_info},
    {"submit", "queues a training run on a Slurm cluster", phalanx::run_submit},
    {"status", "how a run is doing, and its job", phalanx::run_status},
    {"cancel", "ends a run and its job, saved", phalanx::run_cancel},
    {"supervise", "runs and restarts the ranks of a submitted job", phalanx::run_supervise},
    {"version", "the version", run_version},
};

std::string usage() {
  std::string text = "usage: phalanx COMMAND [options]\n\ncommands:\n";
  for (const auto& command : kCommands)
    text += fmt::format("  {:<10} {}\n", command.name, command.purpose);
  return text + "\n`phalanx COMMAND --help` lists the command's options.\n";
}

int run(const Arguments& arguments) {
  if (!arguments.empty() && (arguments[0] == "--help" || arguments[0] == "-h")) {
    std::fputs(usage().c_str(), stdout);
    return 0;
  }
  phalanx::check_usage(!arguments.empty(), "no command given\n", usage());
  std::vector<std::string> names;
  for (const auto& command : kCommands) {
    if (arguments[0] == command.name || arguments[0] == std::string("--") + command.name)
      return command.run({arguments.begin() + 1, arguments.end()});
    names.emplace_back(command.name);
  }
  throw phalanx::UsageError(fmt::format("no command is called '{}'; the nearest is '{}'\n{}",
                                        arguments[0], phalanx::nearest_word(arguments[0], names),
                                        usage()));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const phalanx::UsageError& error) {
    std::fprintf(stderr, "phalanx: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "phalanx: %s\n", error.what());
    return 1;
  }
}
