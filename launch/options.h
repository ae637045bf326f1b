// Options of a subcommand: every source applied in order of precedence, help, and the effective
// configuration as text and as a config file.
#pragma once

#include <string>
#include <vector>

#include "core/config.h"
#include "launch/command_options.h"
#include "launch/option_table.h"

namespace phalanx {

/// True if the arguments ask for help.
bool wants_help(const std::vector<std::string>& arguments);

/// Sets the fields behind `table` from all sources: command line > file named by `config` >
/// PHALANX_ environment > base > default, where base is the preset named by `model`, put into
/// `config`, or the config.ini of the run folder named by `load`, without its layout: weights
/// load on any mesh. Returns all problems, one sentence each. Files and environment may hold
/// options of other subcommands.
std::vector<std::string> apply_options(const std::vector<std::string>& arguments,
                                       const OptionTable& table, RunConfig& config);

/// Sets the fields behind `table` from the command line alone, for subcommands that know no run
/// configuration. Words that belong to no option go to `words`. Returns all problems.
std::vector<std::string> apply_command_line(const std::vector<std::string>& arguments,
                                            const OptionTable& table,
                                            std::vector<std::string>& words);

/// All problems as one text, a line each.
std::string problem_text(const std::vector<std::string>& problems);

/// Throws UsageError that lists all problems, unless there are none.
void throw_problems(const std::vector<std::string>& problems);

/// Help: usage line, then options by group with their defaults (the table's present values). Only
/// the `groups`; all if empty.
std::string help_text(const std::string& usage, const OptionTable& table,
                      const std::vector<std::string>& groups = {});

/// Every field as a config file with one section per group, for people to read and for `--config`,
/// which makes the same RunConfig of it. A comment gives the default where a value differs from it.
std::string config_ini(const RunConfig& config);

}  // namespace phalanx
