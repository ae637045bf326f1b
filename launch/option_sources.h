// Where option values come from: command line, environment, INI-style text. Each source becomes a
// list of settings; nothing is stored into a field here.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "launch/option_table.h"

namespace phalanx {

/// One value somebody gave. `where` names it for messages: "--lr", "PHALANX_LR", "run.ini:12: lr".
struct Setting {
  std::string name;
  std::vector<std::string> values;
  std::string where;
};

/// What a source holds, and what is wrong with it: one sentence per problem.
struct Settings {
  std::vector<Setting> settings;
  std::vector<std::string> problems;
  std::vector<std::string> words;  // of a command line, that belong to no option
};

/// `--name value`, `--name=value`, `--switch`, `--no-switch`, `--bf16`. Unknown options are
/// problems.
Settings read_command_line(const std::vector<std::string>& arguments, const OptionTable& table);

/// Variables PHALANX_NUM_LAYERS=... of the process. Names outside `table` are left in.
Settings read_environment(const OptionTable& table);

/// Lines `name = value`; `[sections]`, blank lines and lines that start with # or ; are skipped,
/// and so is the rest of a line from a blank followed by #. Values may stand in double quotes. Any
/// bytes are safe to read; `file` is named in messages.
Settings read_config_text(std::string_view text, const std::string& file, const OptionTable& table);

/// read_config_text of a file; a file that cannot be read is a problem.
Settings read_config_file(const std::string& file, const OptionTable& table);

}  // namespace phalanx
