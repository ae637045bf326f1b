// How far a run has come, told from its folder.
#pragma once

#include <cstdint>

#include "core/config.h"

namespace phalanx {

struct RunProgress {
  int64_t finished_step = 0;  // highest step in metrics.jsonl, of any start
  int64_t durable_step = -1;  // of the newest complete checkpoint; -1: none

  /// Whether something came to be between `before` and this.
  bool is_beyond(const RunProgress& before) const {
    return finished_step > before.finished_step || durable_step > before.durable_step;
  }
  bool operator==(const RunProgress&) const = default;
};

/// Never throws: what cannot be read has not come about.
RunProgress read_run_progress(const RunConfig& config);

/// The folder of the run's checkpoints.
std::string save_folder_of(const RunConfig& config);

}  // namespace phalanx
