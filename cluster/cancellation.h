// Ending a run for good.
#pragma once

#include <functional>
#include <string>

#include "cluster/slurm.h"

namespace phalanx {

struct CancelOptions {
  int64_t grace = 120;  // seconds for a running job to save and end
  bool now = false;     // do not wait for it
};

/// Leaves RUN/STOP, which ranks see at their next step and supervisors before they start anything
/// again. Then a waiting job is cancelled; a running one is waited for, and cancelled after
/// `grace`. Sentences on what happens go to `tell`. A run that was never submitted gets its stop
/// file only. Throws UsageError if there is no run folder.
void cancel_run(const std::string& run_dir, const CancelOptions& options, Slurm& slurm,
                const std::function<void(const std::string&)>& tell);

}  // namespace phalanx
