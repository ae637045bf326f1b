// Ledger: what became of a run over all its starts, one JSON object a line in RUN/ledger.jsonl.
//
// Written by rank 0 and by the job's supervisor, read by `phalanx status`. Every record has "time"
// (seconds since 1970), "event", and under Slurm "job" and "restart" (its restart count). Beside:
//
//   submitted       nodes, ranks_per_node, script, excluded [names], reason
//   attempt_begin   attempt (from 1), nodes [names], ranks, waited_seconds (in the queue),
//                   finished_step (highest in metrics.jsonl), durable_step (newest checkpoint, -1:
//                   none); if the start before wrote no end: previous_text, previous_nodes_failed
//   signal          attempt, signal (that Slurm sent to the job)
//   preflight       nodes [{node, gflops, copy_gbps, disk_gbps, link_gbps}], outliers [sentences]
//   training_begin  step, train_iters, ranks, startup_seconds, checkpoint (path or ""), layout
//   checkpoint      step, durable, stall_seconds, durable_seconds, problem
//   slow_node       node, percent (of the step that it costs), step
//   hang            text (one sentence per suspect), nodes [names of the suspects'], step
//   training_end    step, reason (done|signal|duration|stop_file|diverged|error), text,
//                   updates (steps of this start that changed the weights: 0 and diverged means
//                   that another start will not get further)
//   attempt_end     attempt, exit_code, cause, nodes_failed [names], step, text, finished_step,
//                   durable_step (as above)
//   decision        action (requeue|resubmit|end), reason, excluded [names]
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/train/record_file.h"

namespace phalanx {

/// Appends whole records; several processes may. What cannot be written (a full disk) is told once
/// on standard error and lost: records are not worth a run. One thread.
class Ledger {
 public:
  /// Opens RUN/ledger.jsonl or makes it. Throws if that cannot be done.
  explicit Ledger(const std::string& run_dir);

  /// `fields` beside time, event, job and restart.
  void write(const std::string& event, const nlohmann::ordered_json& fields = {});

 private:
  RecordFile file_;
  bool told_ = false;
};

/// All records in order; lines that are no JSON object (cut off by a crash) are left out. Empty if
/// the run has no ledger.
std::vector<nlohmann::json> read_ledger(const std::string& run_dir);
/// The same of any file of JSON lines.
std::vector<nlohmann::json> read_records(const std::string& path);

}  // namespace phalanx
