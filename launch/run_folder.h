// The run folder that a subcommand is about, given as a word: `phalanx status RUN`.
#pragma once

#include <string>
#include <vector>

#include "core/config.h"
#include "launch/option_table.h"

namespace phalanx {

/// Sets the options behind `table` and returns the one word beside them as an absolute path. Throws
/// UsageError, naming `command`, if there is none or there are several.
std::string run_folder_argument(const std::vector<std::string>& arguments, const OptionTable& table,
                                const std::string& command);

/// RUN/config.ini as a configuration, as far as it can be read: a run that has not started has
/// none. run_dir is `run_dir`.
RunConfig config_of_run(const std::string& run_dir);

}  // namespace phalanx
