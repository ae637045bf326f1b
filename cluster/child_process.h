// ChildProcess: a program started with a list of words, in a process group of its own.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace phalanx {

class ChildProcess {
 public:
  struct Start {
    std::vector<std::string> words;             // words[0] is looked up on PATH
    std::vector<std::string> environment = {};  // "NAME=value"; empty: this process's own
    bool read_output = true;  // standard output comes to `output()`; else it is this process's
  };

  /// Starts it with nothing to read, no signal blocked, and its standard error in `error()`.
  /// Throws Error if that cannot be done.
  explicit ChildProcess(const Start& start);
  /// Kills the whole group if it was not seen to end.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  /// Descriptors to read from, which do not block; -1 once closed or not asked for.
  int output() const { return output_; }
  int error() const { return error_; }
  /// Appends what has come to `text`; false, and the descriptor closed, once no more will come.
  bool read_output(std::string& text) { return read_some(output_, text); }
  bool read_error(std::string& text) { return read_some(error_, text); }

  /// Exit code, 128 + n if signal n ended it; empty while it runs.
  std::optional<int> exit_code();
  /// To the process itself, or to all of its group. Nothing happens once it has ended.
  void signal(int number);
  void signal_group(int number);

 private:
  static bool read_some(int& descriptor, std::string& text);

  pid_t pid_ = -1;
  int output_ = -1;
  int error_ = -1;
  std::optional<int> exit_code_;
};

}  // namespace phalanx
