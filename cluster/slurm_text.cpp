// Readers of Slurm's texts.
#include "cluster/slurm_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <ctime>
#include <sstream>

namespace phalanx {
namespace {

constexpr int64_t kMinute = 60;
constexpr int64_t kHour = 60 * kMinute;
constexpr int64_t kDay = 24 * kHour;

std::string_view trim(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\n";
  const auto begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

std::optional<int64_t> whole_number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  constexpr int64_t kMost = int64_t{1} << 40;  // so that sums and products of a few stay exact
  if (error != std::errc() || end != text.data() + text.size() || value < 0 || value > kMost)
    return std::nullopt;
  return value;
}

/// The first number of "4", "4-8", "2+": what sinfo prints where nodes or bounds differ.
int64_t leading_number(const std::string& text) {
  int64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

/// The value behind "Key=" in a line of blank-separated pairs; empty where Slurm prints (null).
std::string value_of(const std::string& line, const std::string& key) {
  const std::string padded = " " + line;
  const auto at = padded.find(" " + key + "=");
  if (at == std::string::npos) return {};
  const auto begin = at + key.size() + 2;
  std::string value = padded.substr(begin, padded.find(' ', begin) - begin);
  while (!value.empty() && value.back() == '\n') value.pop_back();
  return value == "(null)" || value == "N/A" ? std::string() : value;
}

int64_t seconds_of(const std::string& text) {
  return parse_time_limit(text).value_or(0);
}

}  // namespace

std::vector<std::string> split_text(std::string_view text, char separator) {
  std::vector<std::string> pieces;
  while (!text.empty()) {
    const auto end = std::min(text.find(separator), text.size());
    if (const auto piece = trim(text.substr(0, end)); !piece.empty()) pieces.emplace_back(piece);
    text.remove_prefix(std::min(text.size(), end + 1));
  }
  return pieces;
}

std::optional<int64_t> parse_time_limit(const std::string& text) {
  if (text == "UNLIMITED" || text == "infinite" || text == "INFINITE") return 0;
  const auto dash = text.find('-');
  const bool has_days = dash != std::string::npos;
  std::vector<int64_t> parts;
  std::string_view rest = text;
  std::optional<int64_t> days = 0;
  if (has_days) {
    days = whole_number(rest.substr(0, dash));
    rest.remove_prefix(dash + 1);
  }
  for (std::string_view left = rest; true;) {
    const auto end = std::min(left.find(':'), left.size());
    const auto number = whole_number(left.substr(0, end));
    if (!number) return std::nullopt;
    parts.push_back(*number);
    if (end == left.size()) break;
    left.remove_prefix(end + 1);
  }
  if (!days || parts.size() > 3) return std::nullopt;
  // With days the first part is hours; without, one or two parts begin with minutes.
  const bool hours_first = has_days || parts.size() == 3;
  int64_t unit = hours_first ? kHour : kMinute;
  int64_t seconds = *days * kDay;
  for (const int64_t part : parts) {
    seconds += part * unit;
    unit /= 60;
  }
  return seconds;
}

std::string time_limit_text(int64_t seconds) {
  if (seconds == 0) return "unlimited";
  const std::string days = seconds >= kDay ? fmt::format("{}-", seconds / kDay) : "";
  return fmt::format("{}{:02d}:{:02d}:{:02d}", days, seconds % kDay / kHour,
                     seconds % kHour / kMinute, seconds % kMinute);
}

double parse_clock_time(const std::string& text) {
  std::tm time{};
  time.tm_isdst = -1;  // the time zone knows
  if (strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &time) == nullptr) return 0;
  return static_cast<double>(std::mktime(&time));
}

std::optional<int64_t> parse_memory(const std::string& text) {
  std::string_view digits = text;
  const char unit = text.empty() ? ' ' : text.back();
  if (std::string_view("KMGT").find(unit) != std::string_view::npos) digits.remove_suffix(1);
  const auto number = whole_number(digits);
  if (!number) return std::nullopt;
  if (unit == 'K') return *number / 1024;
  if (unit == 'G') return *number * 1024;
  if (unit == 'T') return *number * 1024 * 1024;
  return *number;
}

SlurmJob parse_job(const std::string& line) {
  SlurmJob job;
  job.id = value_of(line, "JobId");
  job.state = value_of(line, "JobState");
  job.reason = value_of(line, "Reason");
  job.node_list = value_of(line, "NodeList");
  job.dependency = value_of(line, "Dependency");
  job.exit_code = value_of(line, "ExitCode");
  job.num_nodes = leading_number(value_of(line, "NumNodes"));
  job.restarts = leading_number(value_of(line, "Restarts"));
  // Printed with all its parts, "00:00:07".
  job.run_seconds = seconds_of(value_of(line, "RunTime"));
  job.time_limit_seconds = seconds_of(value_of(line, "TimeLimit"));
  job.submit_time = parse_clock_time(value_of(line, "SubmitTime"));
  job.start_time = parse_clock_time(value_of(line, "StartTime"));
  job.end_time = parse_clock_time(value_of(line, "EndTime"));
  const double preempted = parse_clock_time(value_of(line, "PreemptTime"));
  job.preempted = preempted > 0 && preempted >= job.start_time;
  return job;
}

std::optional<SlurmNode> parse_node(const std::string& line) {
  std::vector<std::string> words;
  std::istringstream in(line);
  for (std::string word; std::getline(in, word, '|');) words.emplace_back(trim(word));
  if (words.size() < 9 || words[0].empty()) return std::nullopt;
  SlurmNode node;
  node.name = words[0];
  node.partition = words[1];
  node.in_default_partition = words[2].ends_with('*');
  node.cpus = leading_number(words[3]);
  node.memory_mib = leading_number(words[4]);
  node.state = words[5];
  // Marks behind the state: not responding, powered down, in a reservation, ...
  while (!node.state.empty() &&
         std::string_view("*~#!%$@^+-").find(node.state.back()) != std::string_view::npos) {
    if (node.state.back() == '*') node.answers = false;
    node.state.pop_back();
  }
  node.time_limit_seconds = seconds_of(words[6]);
  const auto dash = words[7].find('-');
  node.most_nodes = dash == std::string::npos ? 0 : leading_number(words[7].substr(dash + 1));
  node.generic = words[8] == "(null)" ? "" : words[8];
  return node;
}

std::vector<std::string> parse_mpi_list(const std::string& text) {
  std::vector<std::string> names;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const auto colon =
        line.rfind(':');  // "specific pmix plugin versions available: pmix_v3,pmix_v4"
    const std::string rest = colon == std::string::npos ? line : line.substr(colon + 1);
    for (const std::string& name : split_text(rest, ','))
      if (name.find(' ') == std::string::npos) names.push_back(name);
  }
  return names;
}

}  // namespace phalanx
