// External programs: run with a list of words (never by a shell), waited for with a deadline.
#pragma once

#include <string>
#include <vector>

namespace phalanx {

struct CommandResult {
  int exit_code = 0;   // 128 + number of the signal that ended it
  std::string output;  // of standard output
  std::string error;   // of standard error
};

/// The word as a shell reads it back: in single quotes where it must be.
std::string shell_word(const std::string& word);
/// The words as a person would type them, quoted where a shell needs it.
std::string command_text(const std::vector<std::string>& words);

/// The program called `name` on PATH (or `name` itself, if it has a slash); "" if there is none.
std::string find_program(const std::string& name);

/// Runs words[0], found on PATH, with nothing to read, and returns when it ended. `environment`
/// ("NAME=value"); empty: this process's own. Throws Error if there is no such program, and if it
/// has not ended after `timeout_seconds`: then it and what it started in its process group are
/// killed.
CommandResult run_command(const std::vector<std::string>& words, double timeout_seconds,
                          const std::vector<std::string>& environment = {});

}  // namespace phalanx
