// Steps from the metrics, checkpoints from their folder.
#include "cluster/run_progress.h"

#include "cluster/metrics_tail.h"
#include "core/checkpoint/save_folder.h"
#include "core/run_files.h"
#include "kernels/base/log.h"

namespace phalanx {

std::string save_folder_of(const RunConfig& config) {
  const std::string& save = config.checkpoint.save;
  return save.empty() ? config.training.run_dir + "/checkpoints" : save;
}

RunProgress read_run_progress(const RunConfig& config) {
  RunProgress progress{.finished_step = highest_iteration(metrics_path(config.training.run_dir))};
  try {
    const auto checkpoints = list_checkpoints(save_folder_of(config));
    if (!checkpoints.empty()) progress.durable_step = checkpoints.front().iteration;
  } catch (const Error& error) {
    log_info("cannot read the checkpoints: {}", error.what());
  }
  return progress;
}

}  // namespace phalanx
