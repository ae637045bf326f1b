// The options of `phalanx train` as other subcommands take them: behind `--`.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "cluster/submission.h"

namespace phalanx {

/// The arguments before the first `--` and those behind it.
std::pair<std::vector<std::string>, std::vector<std::string>> split_at_dashes(
    const std::vector<std::string>& arguments);

/// Applies options of train from all their sources (command line, --config, environment, --model).
/// Throws UsageError with all problems of the options themselves; whether they fit a number of
/// ranks is for `submit_run` to say. run_dir must be given; it becomes absolute. The program is
/// this one.
PreparedRun prepare_run(const std::vector<std::string>& train_arguments);

}  // namespace phalanx
