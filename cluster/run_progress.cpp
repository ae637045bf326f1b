// Steps from the metrics, checkpoints from their folder.
#include "cluster/run_progress.h"

#include <algorithm>

#include "cluster/record_values.h"
#include "core/checkpoint/save_folder.h"
#include "core/run_files.h"
#include "core/train/ledger.h"
#include "kernels/base/log.h"

namespace phalanx {

std::string save_folder_of(const RunConfig& config) {
  const std::string& save = config.checkpoint.save;
  return save.empty() ? config.training.run_dir + "/checkpoints" : save;
}

RunProgress read_run_progress(const RunConfig& config) {
  RunProgress progress;
  for (const Record& record : read_records(metrics_path(config.training.run_dir)))
    progress.finished_step = std::max(progress.finished_step, integer_in(record, "iteration"));
  try {
    const auto checkpoints = list_checkpoints(save_folder_of(config));
    if (!checkpoints.empty()) progress.durable_step = checkpoints.front().iteration;
  } catch (const Error& error) {
    log_info("cannot read the checkpoints: {}", error.what());
  }
  return progress;
}

}  // namespace phalanx
