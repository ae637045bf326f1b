// Lines of the script, each with the reason for it where it is not plain.
#include "cluster/batch_script.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "cluster/external_command.h"
#include "core/run_files.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

class Lines {
 public:
  /// "# <text>".
  void remark(const std::string& text) { text_ += "# " + text + "\n"; }
  /// "#SBATCH --name=value"; nothing if there is no value.
  void option(const std::string& name, const std::string& value) {
    if (!value.empty()) text_ += "#SBATCH " + sbatch_word("--" + name + "=" + value) + "\n";
  }
  void option(const std::string& word) { text_ += "#SBATCH " + sbatch_word("--" + word) + "\n"; }
  void line(const std::string& text) { text_ += text + "\n"; }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

void check_path(const char* what, const std::string& path) {
  check_usage(path.find_first_of("\n\r\\") == std::string::npos, what, " ", path,
              ": Slurm cannot write a path with a line break or a backslash; use another folder");
}

/// Slurm replaces %j and the like in names of output files.
std::string without_patterns(const std::string& path) {
  std::string text;
  for (const char c : path) text.append(c == '%' ? "%%" : std::string(1, c));
  return text;
}

/// What Slurm's lists show well: no blanks, nothing that begins a pair of theirs.
std::string job_name(const BatchScript& script) {
  std::string name = script.options.job_name;
  if (name.empty()) name = std::filesystem::path(script.run_dir).filename().string();
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '-' && c != '.') c = '_';
  return name.empty() ? "phalanx" : name;
}

void add_tasks(Lines& lines, const BatchScript& script) {
  const SubmitOptions& options = script.options;
  int64_t cpus = script.cpus_per_rank;
  if (options.least_nodes() == options.nodes && !script.overcommit) {
    lines.option("ntasks-per-node", std::to_string(options.ranks_per_node));
  } else {
    lines.remark(fmt::format("A task stands for a node and its {} ranks: Slurm queues no job with",
                             options.ranks_per_node));
    lines.remark(
        "more tasks than processors, and gives no more nodes than a number of tasks needs.");
    if (!script.overcommit) cpus *= options.ranks_per_node;
  }
  if (cpus > 0) lines.option("cpus-per-task", std::to_string(cpus));
}

void add_resources(Lines& lines, const BatchScript& script) {
  const SubmitOptions& options = script.options;
  const int64_t least = options.least_nodes();
  lines.option("job-name", job_name(script));
  lines.option("nodes", least == options.nodes ? std::to_string(options.nodes)
                                               : fmt::format("{}-{}", least, options.nodes));
  add_tasks(lines, script);
  if (options.gpus_per_node > 0) lines.option("gres", fmt::format("gpu:{}", options.gpus_per_node));
  lines.option("mem", options.memory);
  lines.option("time", options.time);
  lines.option("partition", options.partition);
  lines.option("account", options.account);
  lines.option("qos", options.qos);
  for (const std::string& word : options.sbatch_options) lines.option(word);
}

void add_life_cycle(Lines& lines, const BatchScript& script) {
  lines.option("chdir", script.working_folder);
  lines.remark("One log for all starts of a job: a start adds to it.");
  lines.option("output", without_patterns(script.run_dir) + "/slurm-%j.log");
  lines.option("open-mode", "append");
  lines.remark(script.options.requeue
                   ? "After a failed node or preemption Slurm itself queues the job again."
                   : "An interrupted job does not come back under its number: supervise hands this "
                     "script in again.");
  lines.option(script.options.requeue ? "requeue" : "no-requeue");
  lines.remark(
      "Ahead of the time limit, so that the last save fits in: to this script only (B:), "
      "which tells");
  lines.remark("the ranks. Slurm looks every 30 s, so it may come up to 60 s early.");
  lines.option("signal", fmt::format("B:USR1@{}", script.warning_seconds));
}

void add_environment(Lines& lines, const BatchScript& script) {
  lines.remark(
      "Slurm's PMIx barrier lets ranks through too early where TreeWidth exceeds the nodes "
      "of a step:");
  lines.remark("now and then MPI_Init crashes. Its ring algorithm does not have the fault.");
  lines.line("export SLURM_PMIX_FENCE=ring");
  if (script.overcommit) {
    lines.remark("More ranks than processors: a rank that waits must let others compute.");
    lines.line("export OMPI_MCA_mpi_yield_when_idle=1");
  }
  if (script.threads_per_rank > 0) {
    lines.remark("Threads of a rank, unless set already.");
    lines.line(fmt::format("export OMP_NUM_THREADS=\"${{OMP_NUM_THREADS:-{}}}\"",
                           script.threads_per_rank));
  }
}

}  // namespace

std::string sbatch_word(const std::string& word) {
  check_usage(word.find_first_of("\n\r") == std::string::npos, word,
              " has a line break, which no #SBATCH line can hold; leave it out");
  const auto plain = [](unsigned char c) {
    return std::isalnum(c) != 0 ||
           std::string_view("-_=./,:+@%[]").find(static_cast<char>(c)) != std::string_view::npos;
  };
  if (std::ranges::all_of(word, plain)) return word;
  std::string text = "\"";
  for (const char c : word) {
    if (c == '"' || c == '\\') text += '\\';
    text += c;
  }
  return text + "\"";
}

std::string batch_script_text(const BatchScript& script) {
  check_path("run-dir", script.run_dir);
  check_path("working folder", script.working_folder);
  check_path("program", script.program);
  const SubmitOptions& options = script.options;
  Lines lines;
  lines.line("#!/bin/bash");
  lines.remark(fmt::format("A Phalanx run on {} nodes x {} ranks, written by `phalanx submit`.",
                           options.nodes, options.ranks_per_node));
  add_resources(lines, script);
  add_life_cycle(lines, script);
  lines.line("");
  add_environment(lines, script);
  lines.line("");
  lines.remark("Starts the ranks, passes signals on, and queues the job again where that helps.");
  lines.remark("The options of training are in submission.json beside this script.");
  lines.line("exec " + command_text({script.program, "supervise", "--run-dir", script.run_dir}));
  return lines.text();
}

}  // namespace phalanx
