// Files of a run folder that more than one part of the system knows.
#pragma once

#include <string>

#include <fmt/format.h>

namespace phalanx {

/// One record per step, and one per checkpoint, evaluation and other event of the steps.
inline std::string metrics_path(const std::string& run_dir) {
  return run_dir + "/metrics.jsonl";
}
/// What became of the run over all its starts (core/train/ledger.h).
inline std::string ledger_path(const std::string& run_dir) {
  return run_dir + "/ledger.jsonl";
}
/// As long as this file is there the run stops and does not start.
inline std::string stop_file_path(const std::string& run_dir) {
  return run_dir + "/STOP";
}
/// Flight records and, after a hang, native stacks of all ranks.
inline std::string ranks_folder(const std::string& run_dir) {
  return run_dir + "/ranks";
}
inline std::string flight_record_path(const std::string& run_dir, int64_t rank) {
  return fmt::format("{}/ranks/rank_{:05d}.flight", run_dir, rank);
}
inline std::string stacks_path(const std::string& run_dir, int64_t rank) {
  return fmt::format("{}/ranks/rank_{:05d}.stacks", run_dir, rank);
}
/// What `phalanx submit` hands to sbatch, and with which options it was made.
inline std::string batch_script_path(const std::string& run_dir) {
  return run_dir + "/submit.sbatch";
}
/// Held by who queues a job of the run.
inline std::string submission_lock_path(const std::string& run_dir) {
  return run_dir + "/submission.lock";
}
inline std::string submission_path(const std::string& run_dir) {
  return run_dir + "/submission.json";
}

}  // namespace phalanx
