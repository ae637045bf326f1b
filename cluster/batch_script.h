// The script that sbatch gets: short, to be read by people, and the same at every start of a job.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cluster/submit_options.h"

namespace phalanx {

struct BatchScript {
  SubmitOptions options;
  std::string run_dir;           // absolute
  std::string program;           // absolute
  std::string working_folder;    // in which the job runs
  int64_t cpus_per_rank = 0;     // 0: Slurm's default
  int64_t threads_per_rank = 0;  // 0: as OpenMP does
  bool overcommit = false;       // more ranks on a node than it has processors
  int64_t warning_seconds = 0;   // before the time limit
};

/// The text of the script. Throws UsageError if a path has a line break or a backslash, which no
/// #SBATCH line can hold.
std::string batch_script_text(const BatchScript& script);

/// A word as a #SBATCH line holds it: sbatch reads quotes and backslashes as a shell does, but
/// knows no $.
std::string sbatch_word(const std::string& word);

}  // namespace phalanx
