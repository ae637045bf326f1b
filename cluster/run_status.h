// How a run is doing, gathered from its folder and from Slurm.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cluster/goodput.h"
#include "cluster/record_values.h"
#include "cluster/slurm.h"
#include "core/config.h"

namespace phalanx {

/// A job of the run, as far as Slurm knows it.
struct JobStatus {
  std::string id;
  std::optional<SlurmJob> job;  // empty: no longer known, or Slurm did not answer
};

struct RunStatus {
  std::string run_dir;
  bool submitted = false;       // by `phalanx submit`
  std::string slurm_problem;    // why Slurm says nothing; empty: it does
  std::vector<JobStatus> jobs;  // the newest two at most, newest last
  bool stop_file = false;

  int64_t attempt = 0;             // starts so far
  int64_t restarts = 0;            // of them since it was submitted last
  std::vector<std::string> nodes;  // of the newest start
  int64_t step = 0;
  int64_t total_steps = 0;  // 0: unknown
  double loss = 0;
  double tokens_per_second = 0;  // median of the last steps; 0: none yet
  double step_seconds = 0;
  double seconds_since_step = -1;  // -1: unknown
  std::string checkpoint;          // folder of the newest complete one; empty: none
  int64_t checkpoint_step = -1;
  std::vector<std::string> events;  // sentences, newest last
  Goodput goodput;

  /// Of the steps that are left; 0: none, or unknown.
  double seconds_left() const;
  /// Whether a job of it waits or runs.
  bool is_active() const;
};

/// Slurm is asked only about runs that were submitted. Throws UsageError if there is no such run
/// folder.
RunStatus gather_status(const RunConfig& config, Slurm& slurm);

std::string status_text(const RunStatus& status);
nlohmann::ordered_json status_json(const RunStatus& status);

/// One record of the ledger as a sentence; empty for those that are no event to a person.
std::string event_sentence(const Record& record);

}  // namespace phalanx
