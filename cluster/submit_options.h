// SubmitOptions: how many nodes for how long, and what becomes of a job that is interrupted.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/enum_names.h"
#include "kernels/base/fields.h"

namespace phalanx {

/// What starts the ranks inside the job.
enum class Launcher : uint8_t { automatic, srun_pmix, srun_pmi2, mpirun };
template <>
struct EnumNames<Launcher> {
  static constexpr std::pair<Launcher, std::string_view> table[] = {
      {Launcher::automatic, "auto"},
      {Launcher::srun_pmix, "srun-pmix"},
      {Launcher::srun_pmi2, "srun-pmi2"},
      {Launcher::mpirun, "mpirun"}};
};

struct SubmitOptions {
  int64_t nodes = 1;
  int64_t min_nodes = 0;  // 0: nodes
  int64_t ranks_per_node = 1;
  int64_t cpus_per_rank = 0;
  int64_t gpus_per_node = 0;
  std::string time;
  std::string memory;
  std::string partition;
  std::string account;
  std::string qos;
  std::string job_name;
  std::string dependency;
  std::string program;
  Launcher launcher = Launcher::automatic;
  bool requeue = true;
  std::vector<std::string> sbatch_options;
  bool dry_run = false;

  int64_t least_nodes() const { return min_nodes == 0 ? nodes : min_nodes; }
  bool operator==(const SubmitOptions&) const = default;
};

template <class Config, class Visitor>
requires ConfigOf<Config, SubmitOptions>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Submit");
  visit("nodes", config.nodes, "nodes to ask for");
  visit("min-nodes", config.min_nodes,
        "run on as few as this many nodes where no more are free, and after nodes failed; data "
        "parallelism follows; 0: as many as --nodes");
  visit("ranks-per-node", config.ranks_per_node, "ranks on each node");
  visit("cpus-per-rank", config.cpus_per_rank,
        "processors of a rank; 0: all of a node, shared out evenly");
  visit("gpus-per-node", config.gpus_per_node, "GPUs of a node (--gres=gpu:N); one per rank");
  visit("time", config.time,
        "time limit of one start, as Slurm writes it: 04:00:00, 1-12:00:00, 30 (minutes); empty: "
        "the partition's");
  visit("memory", config.memory,
        "memory of a node to ask for and to check the layout against, e.g. 180G; empty: ask for "
        "nothing and check against the partition's smallest node");
  visit("partition", config.partition, "partition; empty: the site's default");
  visit("account", config.account, "account to charge");
  visit("qos", config.qos, "quality of service");
  visit("job-name", config.job_name, "name in the queue; empty: the run folder's");
  visit("dependency", config.dependency,
        "start after other jobs, as Slurm writes it: afterany:123");
  visit("program", config.program,
        "what every rank starts with the arguments of phalanx, e.g. a script that enters a "
        "container; empty: this program");
  visit("launcher", config.launcher,
        "what starts the ranks; auto: srun with PMIx or PMI2 where Slurm and MPI share one, mpirun "
        "inside the job elsewhere");
  visit("requeue", config.requeue,
        "an interrupted job goes back into the queue under its number; without: it is handed in "
        "again as a new job");
  visit("sbatch-options", config.sbatch_options,
        "more for sbatch, one word each without dashes in front: exclusive constraint=h100");
  visit("dry-run", config.dry_run, "print the script; write and queue nothing");
}

}  // namespace phalanx
