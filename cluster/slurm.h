// Slurm through its own commands: what the site has, jobs handed in, looked at and ended.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cluster/external_command.h"

namespace phalanx {

/// A job as `scontrol show job` tells it.
struct SlurmJob {
  std::string id;
  std::string state;        // "PENDING", "RUNNING", "COMPLETING", "COMPLETED", "TIMEOUT", ...
  std::string reason;       // why it waits or ended: "Resources", "TimeLimit"; "None"
  std::string node_list;    // "node[1-4]"; empty before it runs
  std::string dependency;   // "afterany:12(unfulfilled)"; empty
  std::string exit_code;    // "0:0": of the script, and the signal that ended it
  int64_t num_nodes = 0;    // as asked (the least number) or as allocated
  int64_t restarts = 0;     // how often it was requeued
  int64_t run_seconds = 0;  // of this start
  int64_t time_limit_seconds = 0;  // 0: none
  double submit_time = 0;          // seconds since 1970; of a requeued job, when it was requeued
  double start_time = 0;           // expected, while it waits; 0: unknown
  double end_time = 0;             // expected, while it runs; 0: unknown
  bool preempted = false;          // at this start

  /// It waits, runs or comes to its end: it may still write into its run folder.
  bool is_active() const;
};

/// One node in one partition, as `sinfo` tells it.
struct SlurmNode {
  std::string name;
  std::string partition;
  bool in_default_partition = false;
  int64_t cpus = 0;
  int64_t memory_mib = 0;
  std::string state;    // "idle", "allocated", "down", "drained", ...; no flag characters
  bool answers = true;  // to the controller
  int64_t time_limit_seconds = 0;  // of the partition; 0: none
  int64_t most_nodes = 0;          // of a job in the partition; 0: no limit
  std::string generic;             // "gpu:h100:8"; empty

  /// Down, drained, failing or not answering: no job of ours will run on it now.
  bool is_out() const;
};

/// What a job is handed in with, beside its script's own lines.
struct SbatchOptions {
  std::vector<std::string> excluded;  // nodes
  std::string dependency;             // "afterany:12"
};

/// Every method throws UsageError if Slurm's command is not installed, and Error with the command,
/// its exit code and what it said if it failed or took too long.
class Slurm {
 public:
  virtual ~Slurm() = default;

  /// Whether sbatch is on PATH.
  virtual bool installed() const;

  /// sbatch --parsable: the job's id.
  std::string submit(const std::string& script, const SbatchOptions& options);
  /// Empty if Slurm does not know the job: it forgets those that ended (MinJobAge).
  std::optional<SlurmJob> job(const std::string& id);
  /// All nodes in all partitions that a user may see.
  std::vector<SlurmNode> nodes();
  /// The same of these nodes ("node[1-4]" or "a,b"), once each.
  std::vector<SlurmNode> nodes(const std::string& node_list);
  /// "node[1-3]" to names.
  std::vector<std::string> host_names(const std::string& node_list);
  /// Seconds until the job's time limit; empty if it has none.
  std::optional<int64_t> seconds_left(const std::string& id);
  /// Runs `true` as a step of this job, whose number no later step of this start has.
  void use_up_step_number();
  void cancel(const std::string& id);
  void requeue(const std::string& id);
  /// srun --mpi=list: "pmix", "pmix_v4", "pmi2", ...
  std::vector<std::string> mpi_plugins();

 protected:
  /// One command of Slurm; tests give their own answers here.
  virtual CommandResult run(const std::vector<std::string>& words);

 private:
  /// `run`, whose exit code must be 0.
  std::string output_of(const std::vector<std::string>& words);
};

}  // namespace phalanx
