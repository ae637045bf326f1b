// /proc/PID/stat in words.
#include "core/train/process_state.h"

#include <fmt/format.h>

#include <fstream>
#include <iterator>

namespace phalanx {

std::string process_state_text(std::string_view stat) {
  // The name in brackets may hold anything, brackets and spaces too.
  const size_t end = stat.rfind(')');
  const char state = end == std::string_view::npos || end + 2 >= stat.size() ? '?' : stat[end + 2];
  switch (state) {
    case 'T':
    case 't':
      return "is stopped (by SIGSTOP, or held by a debugger)";
    case 'D':
      return "waits in the kernel for a device or a file system (state D)";
    case 'Z':
    case 'X':
      return "has died (state Z)";
    case 'R':
    case 'S':
      return fmt::format(
          "is there (state {}), but its watchdog does not write: does the file "
          "system answer?",
          state);
    default:
      return fmt::format("is in state {}", state);
  }
}

std::string process_state(int64_t process) {
  std::ifstream file(fmt::format("/proc/{}/stat", process));
  const std::string stat{std::istreambuf_iterator<char>(file), {}};
  return stat.empty() ? "is gone" : process_state_text(stat);
}

}  // namespace phalanx
