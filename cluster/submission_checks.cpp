// Checks of a submission. Each names values that would do.
#include "cluster/submission_checks.h"

#include <unistd.h>

#include <algorithm>
#include <limits>
#include <set>

#include "cluster/slurm_text.h"
#include "core/train/memory_options.h"
#include "core/train/run_setup.h"
#include "parallel/device_mesh.h"

namespace phalanx {
namespace {

constexpr int64_t kMostOfAnything = 100'000;  // nodes, and ranks of a node
constexpr int64_t kMebibyte = int64_t{1} << 20;

bool runs_on_gpus(const SubmitOptions& options, const RunConfig& config) {
  if (config.training.device == DeviceChoice::cpu) return false;
  return config.training.device == DeviceChoice::cuda ||
         options.gpus_per_node >= options.ranks_per_node;
}

Problems option_problems(const SubmitOptions& options) {
  Problems problems;
  at_least(problems, "nodes", options.nodes, 1);
  at_least(problems, "min-nodes", options.min_nodes, 0);
  at_least(problems, "ranks-per-node", options.ranks_per_node, 1);
  at_least(problems, "cpus-per-rank", options.cpus_per_rank, 0);
  at_least(problems, "gpus-per-node", options.gpus_per_node, 0);
  for (const auto& [name, count] :
       {std::pair("nodes", options.nodes), std::pair("ranks-per-node", options.ranks_per_node)})
    if (count > kMostOfAnything)
      report(problems, "{} {} is more than any cluster has; the nearest is {}", name, count,
             kMostOfAnything);
  if (options.min_nodes > options.nodes)
    report(problems, "min-nodes {} is more than nodes {}; the nearest is {}", options.min_nodes,
           options.nodes, options.nodes);
  if (!options.time.empty() && parse_time_limit(options.time).value_or(-1) <= 0)
    report(problems,
           "time '{}' is no time limit; write 04:00:00 (hours), 1-12:00:00 (days) or 30 (minutes)",
           options.time);
  if (!options.memory.empty() && parse_memory(options.memory).value_or(0) <= 0)
    report(problems, "memory '{}' is no amount of memory; write 180G or 184320M", options.memory);
  if (!options.program.empty() &&
      (!options.program.starts_with('/') || access(options.program.c_str(), X_OK) != 0))
    report(problems, "program {} must be the absolute path of a program that every node can start",
           options.program);
  for (const std::string& word : options.sbatch_options)
    if (word.empty() || word.find_first_of("\n\r") != std::string::npos)
      report(problems, "sbatch-options has an empty word or a line break; leave it out");
  return problems;
}

/// The valid number of nodes nearest to `nodes`, looked for up to twice as many; 0 if none.
int64_t nearest_valid_nodes(const SubmitOptions& options, const RunConfig& config) {
  for (int64_t distance = 1; distance <= options.nodes; ++distance)
    for (const int64_t nodes : {options.nodes - distance, options.nodes + distance})
      if (nodes > 0 && validate(config, nodes * options.ranks_per_node).empty()) return nodes;
  return 0;
}

}  // namespace

PartitionFacts partition_facts(const std::vector<SlurmNode>& nodes, const std::string& wanted) {
  PartitionFacts facts;
  std::set<std::string> names;
  facts.least_cpus = std::numeric_limits<int64_t>::max();
  facts.least_memory_mib = std::numeric_limits<int64_t>::max();
  for (const SlurmNode& node : nodes) {
    names.insert(node.partition);
    const bool ours = wanted.empty() ? node.in_default_partition : node.partition == wanted;
    if (!ours) continue;
    facts.name = node.partition;
    facts.time_limit_seconds = node.time_limit_seconds;
    facts.most_nodes = node.most_nodes;
    facts.least_cpus = std::min(facts.least_cpus, node.cpus);
    facts.least_memory_mib = std::min(facts.least_memory_mib, node.memory_mib);
    (node.is_out() ? facts.nodes_out : facts.nodes) += 1;
  }
  check_usage(!facts.name.empty(),
              wanted.empty() ? "the site has no default partition; give --partition, one of: "
                             : "there is no partition " + wanted + "; there are: ",
              fmt::format("{}", fmt::join(names, ", ")));
  return facts;
}

std::vector<int64_t> valid_node_counts(const SubmitOptions& options, const RunConfig& config) {
  std::vector<int64_t> counts;
  for (int64_t nodes = options.least_nodes(); nodes <= options.nodes; ++nodes)
    if (validate(config, nodes * options.ranks_per_node).empty()) counts.push_back(nodes);
  return counts;
}

Problems layout_problems(const SubmitOptions& options, const RunConfig& config) {
  Problems problems = option_problems(options);
  if (!problems.empty()) return problems;
  const int64_t ranks = options.nodes * options.ranks_per_node;
  append(problems, validate(config, ranks));
  if (!problems.empty()) {
    problems.front() = fmt::format("on {} nodes x {} ranks = {} ranks: {}", options.nodes,
                                   options.ranks_per_node, ranks, problems.front());
    if (const int64_t nearest = nearest_valid_nodes(options, config); nearest > 0)
      report(problems, "nodes {} x ranks-per-node {} does not suit these options; nodes {} would",
             options.nodes, options.ranks_per_node, nearest);
  }
  if (config.training.device == DeviceChoice::cuda && options.gpus_per_node > 0 &&
      options.gpus_per_node < options.ranks_per_node)
    report(problems,
           "ranks-per-node {} is more than gpus-per-node {}; each rank takes a GPU: the "
           "nearest is {}",
           options.ranks_per_node, options.gpus_per_node, options.gpus_per_node);
  return problems;
}

Problems restart_problems(const SubmitOptions& options, const RunConfig& config) {
  Problems problems;
  const auto& signals = config.checkpoint.exit_signals;
  if (std::ranges::find(signals, "SIGUSR1") == signals.end())
    report(problems,
           "exit-signals lacks SIGUSR1, with which ranks are told to save and stop; add "
           "it");
  if (config.checkpoint.resume == ResumeMode::never && config.checkpoint.save_interval > 0)
    report(problems, "resume never: a job that is interrupted could not go on; use resume auto");
  if (options.least_nodes() < options.nodes && config.training.global_batch_size == 0)
    report(problems,
           "global-batch-size 0 changes with the number of nodes, and with it the "
           "training; with min-nodes give a number");
  return problems;
}

Problems partition_problems(const SubmitOptions& options, const PartitionFacts& partition) {
  Problems problems;
  const int64_t least = options.least_nodes();
  const int64_t all = partition.nodes + partition.nodes_out;
  if (options.nodes > all)
    report(problems, "nodes {} is more than the {} nodes of partition {}; the nearest is {}",
           options.nodes, all, partition.name, all);
  if (partition.most_nodes > 0 && least > partition.most_nodes)
    report(problems, "nodes {} is more than partition {} gives a job; the nearest is {}", least,
           partition.name, partition.most_nodes);
  const int64_t time = parse_time_limit(options.time).value_or(0);
  if (partition.time_limit_seconds > 0 && time > partition.time_limit_seconds)
    report(problems,
           "time {} is above the limit of partition {}; the longest is {} (an interrupted "
           "run goes on in its next start)",
           options.time, partition.name, time_limit_text(partition.time_limit_seconds));
  const int64_t cpus = options.ranks_per_node * options.cpus_per_rank;
  if (options.cpus_per_rank > 0 && cpus > partition.least_cpus)
    report(problems,
           "ranks-per-node {} x cpus-per-rank {} is more than the {} processors of a "
           "node of partition {}; the nearest cpus-per-rank is {}",
           options.ranks_per_node, options.cpus_per_rank, partition.least_cpus, partition.name,
           std::max<int64_t>(1, partition.least_cpus / options.ranks_per_node));
  const int64_t memory = parse_memory(options.memory).value_or(0);
  if (memory > partition.least_memory_mib)
    report(problems,
           "memory {} is more than the {} MiB that nodes of partition {} have; the most "
           "is {}M",
           options.memory, partition.least_memory_mib, partition.name, partition.least_memory_mib);
  return problems;
}

NodeMemory check_node_memory(const SubmitOptions& options, const RunConfig& config,
                             int64_t node_mib) {
  const Device device = runs_on_gpus(options, config) ? Device::cuda : Device::cpu;
  const std::vector<int64_t> counts = valid_node_counts(options, config);
  // Fewer ranks share the optimizer's state: the smallest mesh needs most of each.
  const int64_t nodes = counts.empty() ? options.nodes : counts.front();
  const int64_t ranks = nodes * options.ranks_per_node;
  const DeviceMesh mesh(config.parallel, ranks);
  const RunConfig full = make_run_setup(config, mesh.size(MeshAxis::dp)).config;
  const MemoryNeeds needs = measure_memory(full, ranks, device).first;
  const int64_t rank_bytes = device == Device::cpu ? needs.on_device() : needs.on_host();
  const NodeMemory memory{.needed = rank_bytes * options.ranks_per_node / kMebibyte + 1,
                          .available = node_mib};
  if (node_mib == 0 || memory.needed <= node_mib) return memory;
  const int64_t room = node_mib * kMebibyte / options.ranks_per_node;
  const MemoryRoom rooms{
      .device = device == Device::cpu ? room : std::numeric_limits<int64_t>::max() / 2,
      .host = room};
  throw UsageError(fmt::format(
      "{}\nThe {} ranks of a node need {} MiB ({} MiB each, on {} nodes), and a node has {} MiB. "
      "Fewer --ranks-per-node have more room each. {}",
      memory_table(needs), options.ranks_per_node, memory.needed, rank_bytes / kMebibyte + 1, nodes,
      node_mib, options_that_fit(full, ranks, device, rooms)));
}

}  // namespace phalanx
