// What is asked of submissions before anything is queued: layout, memory, limits of the site.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cluster/slurm.h"
#include "cluster/submission.h"
#include "core/model/problems.h"

namespace phalanx {

/// The partition's nodes as far as they matter here.
struct PartitionFacts {
  std::string name;
  int64_t nodes = 0;       // that are not out
  int64_t nodes_out = 0;   // down, drained, ...
  int64_t least_cpus = 0;  // of a node
  int64_t least_memory_mib = 0;
  int64_t time_limit_seconds = 0;  // 0: none
  int64_t most_nodes = 0;          // of a job; 0: no limit
};

/// The partition `wanted`, or the default one if it is empty. Throws UsageError with the names
/// there are if there is none such.
PartitionFacts partition_facts(const std::vector<SlurmNode>& nodes, const std::string& wanted);

/// Numbers of nodes from options.least_nodes() to options.nodes on which the run can start.
std::vector<int64_t> valid_node_counts(const SubmitOptions& options, const RunConfig& config);

/// Of the options alone and of the layout on options.nodes.
Problems layout_problems(const SubmitOptions& options, const RunConfig& config);
/// Of what a run needs to be interrupted and go on.
Problems restart_problems(const SubmitOptions& options, const RunConfig& config);
/// Of what the partition allows. Empty facts: nothing is known.
Problems partition_problems(const SubmitOptions& options, const PartitionFacts& partition);

/// What the ranks of a node need against what it has. Both in MiB.
struct NodeMemory {
  int64_t needed = 0;
  int64_t available = 0;  // 0: unknown
};

/// Measures the layout on options.nodes nodes and on the fewest valid ones, which need more. Throws
/// UsageError with both numbers and options that fit if it is too much for the node. `node_mib` 0:
/// unknown, then nothing is refused.
NodeMemory check_node_memory(const SubmitOptions& options, const RunConfig& config,
                             int64_t node_mib);

}  // namespace phalanx
