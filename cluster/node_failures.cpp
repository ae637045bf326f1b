// Reading messages of launchers. The texts are those of Slurm 22.05 and Open MPI 4.1.
#include "cluster/node_failures.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <string_view>

#include "cluster/slurm_text.h"
#include "core/exit_codes.h"

namespace phalanx {
namespace {

constexpr size_t kLongestLine = 4096;

/// The text between the first `before` and the next `after`; empty if either is missing.
std::string between(const std::string& line, std::string_view before, std::string_view after) {
  const auto begin = line.find(before);
  if (begin == std::string::npos) return {};
  const auto start = begin + before.size();
  const auto end = line.find(after, start);
  return end == std::string::npos ? std::string() : line.substr(start, end - start);
}

/// The word behind the first `before`, without punctuation at its end.
std::string word_after(const std::string& line, std::string_view before) {
  const auto begin = line.find(before);
  if (begin == std::string::npos) return {};
  const auto start = begin + before.size();
  std::string word = line.substr(start, line.find_first_of(" \t\r", start) - start);
  while (!word.empty() && std::string_view(".,:;").find(word.back()) != std::string_view::npos)
    word.pop_back();
  return word;
}

void add_names(std::vector<std::string>& names, const std::vector<std::string>& more) {
  for (const std::string& name : more)
    if (!name.empty() && std::ranges::find(names, name) == names.end()) names.push_back(name);
}

void keep_first(std::string& text, const std::string& line) {
  if (text.empty()) text = line;
}

bool is_own_exit_code(int code) {
  constexpr std::array<int, 5> kOwn{kExitUsage, kExitDiverged, kExitHung, kExitStopped,
                                    kExitFenced};
  return std::ranges::find(kOwn, code) != kOwn.end();
}

/// The end of a bracket's item, "1-3" or "07": all its numbers with their leading zeros.
void expand_range(const std::string& prefix, const std::string& range,
                  std::vector<std::string>& names) {
  constexpr int64_t kMostNames = 10000;
  const auto dash = range.find('-');
  const std::string first = range.substr(0, dash);
  const std::string last = dash == std::string::npos ? first : range.substr(dash + 1);
  int64_t from = -1;
  int64_t to = -1;
  std::from_chars(first.data(), first.data() + first.size(), from);
  std::from_chars(last.data(), last.data() + last.size(), to);
  if (from < 0 || to < from || to - from > kMostNames) return;
  for (int64_t number = from; number <= to; ++number) {
    std::string digits = std::to_string(number);
    if (digits.size() < first.size()) digits.insert(0, first.size() - digits.size(), '0');
    names.push_back(prefix + digits);
  }
}

}  // namespace

std::vector<std::string> expand_node_list(const std::string& list) {
  std::vector<std::string> names;
  size_t at = 0;
  while (at < list.size()) {
    const auto bracket = list.find('[', at);
    const auto comma = std::min(list.find(',', at), list.size());
    if (bracket > comma) {
      if (comma > at) names.push_back(list.substr(at, comma - at));
      at = comma + 1;
      continue;
    }
    const auto close = list.find(']', bracket);
    if (close == std::string::npos) return {list};
    const std::string prefix = list.substr(at, bracket - at);
    for (const std::string& range : split_text(list.substr(bracket + 1, close - bracket - 1), ','))
      expand_range(prefix, range, names);
    at = close + 2;
  }
  return names;
}

void ErrorLines::add(const std::string& whole) {
  const std::string line = whole.substr(0, kLongestLine);
  if (add_hang(line) || add_lost_node(line) || add_task_end(line)) return;
  if (line.starts_with("phalanx: rank ")) keep_first(rank_text_, line);
  add_slurm_reason(line);
}

bool ErrorLines::add_hang(const std::string& line) {
  if (!line.starts_with("phalanx: hang: ")) return false;
  if (line.starts_with("phalanx: hang: rank ") || line.starts_with("phalanx: hang: ranks ")) {
    add_names(hung_, {word_after(line, " on ")});
    keep_first(hang_text_, line);
  }
  return true;
}

bool ErrorLines::add_lost_node(const std::string& line) {
  if (line.find("Node failure on ") != std::string::npos) {
    add_names(lost_, expand_node_list(word_after(line, "Node failure on ")));
    keep_first(launcher_text_, line);
    return true;
  }
  if (line.find("lost communication with a remote daemon") != std::string::npos) {
    lost_daemon_ = true;
    return true;
  }
  if (lost_daemon_ && line.find("Remote daemon:") != std::string::npos) {
    add_names(lost_, {word_after(line, " on node ")});
    keep_first(launcher_text_, line);
    lost_daemon_ = false;
    return true;
  }
  return false;
}

bool ErrorLines::add_task_end(const std::string& line) {
  // "mpirun noticed that process rank 1 with PID 0 on node node2 exited on signal 9 (Killed)."
  if (line.find("exited on signal") != std::string::npos) {
    if (crashed_.empty()) crashed_ = {word_after(line, " on node ")};
    keep_first(launcher_text_, line);
    return true;
  }
  // "srun: error: node[1-2]: tasks 0-3: Killed"
  const std::string nodes = between(line, "error: ", ": task");
  if (nodes.empty() || nodes.find(' ') != std::string::npos) return false;
  const std::string how = line.substr(line.rfind(": ") + 2);
  const std::string exited = "Exited with exit code ";
  if (how.starts_with(exited)) {
    const int code = std::atoi(how.c_str() + exited.size());
    if (!rank_exit_code_ && is_own_exit_code(code)) rank_exit_code_ = code;
    return true;
  }
  // Terminated is what srun does to the rest; and where a rank has told of an error of its own, all
  // that follows is the rest.
  if (how.starts_with("Terminated")) return true;
  if (crashed_.empty() && rank_text_.empty()) crashed_ = expand_node_list(nodes);
  keep_first(launcher_text_, line);
  return true;
}

void ErrorLines::add_slurm_reason(const std::string& line) {
  // "slurmstepd: error: *** STEP 5.0 ON node1 CANCELLED AT 2026-01-31T00:00:00 DUE TO TIME LIMIT
  // ***"
  if (line.find(" CANCELLED AT ") == std::string::npos) return;
  for (const std::string_view reason : {"TIME LIMIT", "PREEMPTION", "NODE FAILURE", "JOB REQUEUE"})
    if (line.find("DUE TO " + std::string(reason)) != std::string::npos) slurm_reason_ = reason;
}

const std::string& ErrorLines::text() const {
  if (!hang_text_.empty()) return hang_text_;
  return rank_text_.empty() ? launcher_text_ : rank_text_;
}

}  // namespace phalanx
