// Slurm's commands and what they say.
#include "cluster/slurm.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <sstream>
#include <string_view>

#include "cluster/slurm_text.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

/// A controller under load answers within its MessageTimeout (10 s), and commands try again.
constexpr double kTimeoutSeconds = 90;

/// This process's environment without what a running job has in it: sbatch hands its environment
/// on, and a job that finds, say, another job's restart count takes it for its own.
std::vector<std::string> environment_outside_of_jobs() {
  std::vector<std::string> kept;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const bool of_job = text.starts_with("SLURM_") || text.starts_with("SLURMD_");
    if (!of_job || text.starts_with("SLURM_CONF=")) kept.emplace_back(text);
  }
  return kept;
}

bool starts_with_any(std::string_view text, const auto& beginnings) {
  return std::ranges::any_of(
      beginnings, [&](std::string_view beginning) { return text.starts_with(beginning); });
}

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

}  // namespace

bool SlurmJob::is_active() const {
  // Others are ends: COMPLETED, FAILED, TIMEOUT, CANCELLED, NODE_FAIL, PREEMPTED, ...
  constexpr std::array<std::string_view, 9> kActive{"PENDING",     "RUNNING",   "COMPLETING",
                                                    "CONFIGURING", "SUSPENDED", "STOPPED",
                                                    "REQUEUE",     "RESIZING",  "SIGNALING"};
  return starts_with_any(state, kActive) || state == "STAGE_OUT" || state == "SPECIAL_EXIT";
}

bool SlurmNode::is_out() const {
  constexpr std::array<std::string_view, 8> kOut{"down",  "drain",  "fail",    "error",
                                                 "maint", "reboot", "unknown", "future"};
  return !answers || starts_with_any(state, kOut);
}

bool Slurm::installed() const {
  return !find_program("sbatch").empty();
}

CommandResult Slurm::run(const std::vector<std::string>& words) {
  check_usage(!find_program(words[0]).empty(), words[0],
              " is not on PATH: this needs Slurm's commands; run it where sbatch is installed, "
              "usually on a login node of the cluster");
  const bool hands_in = words[0] == "sbatch";
  return run_command(words, kTimeoutSeconds,
                     hands_in ? environment_outside_of_jobs() : std::vector<std::string>());
}

std::string Slurm::output_of(const std::vector<std::string>& words) {
  const CommandResult result = run(words);
  check(result.exit_code == 0, "`", command_text(words), "` ended with ", result.exit_code, ": ",
        result.error.empty() ? result.output : result.error);
  return result.output;
}

std::string Slurm::submit(const std::string& script, const SbatchOptions& options) {
  std::vector<std::string> words{"sbatch", "--parsable"};
  std::string excluded;
  for (const std::string& node : options.excluded)
    excluded.append(excluded.empty() ? "" : ",").append(node);
  if (!excluded.empty()) words.push_back("--exclude=" + excluded);
  if (!options.dependency.empty()) words.push_back("--dependency=" + options.dependency);
  words.push_back(script);
  const std::string answer = first_line(output_of(words));
  std::string id = answer.substr(0, answer.find(';'));  // "123;cluster"
  check(!id.empty() && id.find_first_not_of("0123456789") == std::string::npos,
        "sbatch printed no job id but: ", answer);
  return id;
}

std::optional<SlurmJob> Slurm::job(const std::string& id) {
  const std::vector<std::string> words{"scontrol", "-o", "show", "job", id};
  const CommandResult result = run(words);
  if (result.exit_code != 0) {
    const bool forgotten = result.error.find("Invalid job id") != std::string::npos;
    check(forgotten, "`", command_text(words), "` ended with ", result.exit_code, ": ",
          result.error);
    return std::nullopt;
  }
  return parse_job(first_line(result.output));
}

std::vector<SlurmNode> Slurm::nodes() {
  std::vector<SlurmNode> nodes;
  std::istringstream lines(output_of({"sinfo", "-h", "-N", "-o", kNodeFormat}));
  for (std::string line; std::getline(lines, line);)
    if (auto node = parse_node(line)) nodes.push_back(std::move(*node));
  return nodes;
}

std::vector<SlurmNode> Slurm::nodes(const std::string& node_list) {
  std::map<std::string, SlurmNode> by_name;  // a node is listed once per partition
  std::istringstream lines(output_of({"sinfo", "-h", "-N", "-n", node_list, "-o", kNodeFormat}));
  for (std::string line; std::getline(lines, line);)
    if (auto node = parse_node(line)) by_name.emplace(node->name, *node);
  std::vector<SlurmNode> nodes;
  for (auto& [name, node] : by_name) nodes.push_back(std::move(node));
  return nodes;
}

std::vector<std::string> Slurm::host_names(const std::string& node_list) {
  return split_text(output_of({"scontrol", "show", "hostnames", node_list}), '\n');
}

std::optional<int64_t> Slurm::seconds_left(const std::string& id) {
  const std::string text = first_line(output_of({"squeue", "-h", "-j", id, "-o", "%L"}));
  if (text == "UNLIMITED" || text == "NOT_SET" || text == "INVALID") return std::nullopt;
  // "47:13" is minutes and seconds here, "1-00:00:00" a day.
  return parse_time_limit(text);
}

void Slurm::use_up_step_number() {
  output_of({"srun", "--nodes=1", "--ntasks=1", "--mpi=none", "--input=none", "true"});
}

void Slurm::cancel(const std::string& id) {
  output_of({"scancel", id});
}

void Slurm::requeue(const std::string& id) {
  output_of({"scontrol", "requeue", id});
}

std::vector<std::string> Slurm::mpi_plugins() {
  const CommandResult result = run({"srun", "--mpi=list"});
  // Versions differ in where they print the list and in how they end.
  return parse_mpi_list(result.output + "\n" + result.error);
}

}  // namespace phalanx
