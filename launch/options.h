// Options of a subcommand: every source applied in order of precedence, help, and the effective
// configuration as text and as a config file.
#pragma once

#include <string>
#include <vector>

#include "core/config.h"
#include "launch/option_table.h"

namespace phalanx {

/// Options that say where further values come from.
struct SourceOptions {
  std::string config;
  std::string model;
};

template <class Config, class Visitor>
requires ConfigOf<Config, SourceOptions>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Sources");
  visit("config", config.config, "INI-style file of name = value lines");
  visit("model", config.model, "named model: shape and recipe; see `phalanx info --list`");
}

/// True if the arguments ask for help.
bool wants_help(const std::vector<std::string>& arguments);

/// Sets the fields behind `table` from all sources: command line > file named by `config` >
/// PHALANX_ environment > base > default, where base is the preset named by `model`, put into
/// `config`, or the config.ini of the run folder named by `load`. Returns all problems, one
/// sentence each. Files and environment may hold options of other subcommands.
std::vector<std::string> apply_options(const std::vector<std::string>& arguments,
                                       const OptionTable& table, RunConfig& config);

/// Throws UsageError that lists all problems, unless there are none.
void throw_problems(const std::vector<std::string>& problems);

/// Help: usage line, then options by group with their defaults (the table's present values). Only
/// the `groups`; all if empty.
std::string help_text(const std::string& usage, const OptionTable& table,
                      const std::vector<std::string>& groups = {});

/// Every field as a config file with one section per group; read back, it gives the same RunConfig.
std::string config_ini(const RunConfig& config);

/// Every field for people, by group; a '*' marks what differs from the default.
std::string config_text(const RunConfig& config);

}  // namespace phalanx
