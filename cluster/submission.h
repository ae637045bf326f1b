// A run handed to Slurm: everything that can be wrong is found before anything is queued.
#pragma once

#include <string>
#include <vector>

#include "cluster/slurm.h"
#include "cluster/submit_options.h"
#include "core/config.h"

namespace phalanx {

/// The options of `phalanx train`, already applied (launch/prepared_run.h).
struct PreparedRun {
  RunConfig config;                          // run_dir is an absolute path
  std::vector<std::string> train_arguments;  // as the user wrote them
  std::string program;                       // absolute path of phalanx on the nodes
};

struct Submission {
  std::string job;          // empty after a dry run
  std::string script_path;  // RUN/submit.sbatch
  std::string script;
  std::vector<std::string> notes;  // sentences for the user: what was chosen and why, warnings
};

/// Checks layout and memory on the nodes asked for, and the partition's limits; asks the site how
/// ranks can be started; writes RUN/submit.sbatch and RUN/submission.json; calls sbatch. Throws
/// UsageError, with all problems found, before anything is written or queued; also if an earlier
/// job of the run folder still waits or runs. A dry run writes nothing, asks Slurm only where it is
/// installed, and returns the script.
Submission submit_run(const SubmitOptions& options, const PreparedRun& run, Slurm& slurm);

/// What RUN/submission.json keeps.
struct SubmissionRecord {
  SubmitOptions options;
  std::vector<std::string> train_arguments;
  std::string program;
  std::string working_folder;               // relative paths of train_arguments are meant from here
  Launcher launcher = Launcher::automatic;  // the one taken
  std::string mpi_plugin;                   // of srun --mpi=
  int64_t cpus_per_rank = 0;                // 0: Slurm's default
  bool overcommit = false;                  // more ranks on a node than it has processors
  int64_t warning_seconds = 0;              // from Slurm's signal to the time limit
  std::vector<std::string> jobs;            // ids, the newest last
};

/// Throws UsageError if the run was never submitted, Error if the file is not what was written.
SubmissionRecord read_submission(const std::string& run_dir);
/// Nodes of --sbatch-options exclude=node[1-2].
std::vector<std::string> excluded_by_user(const SubmitOptions& options);
bool has_submission(const std::string& run_dir);
/// Replaces RUN/submission.json in one step.
void write_submission(const std::string& run_dir, const SubmissionRecord& record);

}  // namespace phalanx
