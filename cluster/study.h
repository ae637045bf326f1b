// A scaling study at work: points queued, waited for, gathered.
#pragma once

#include <functional>
#include <string>

#include "cluster/report.h"
#include "cluster/submission.h"

namespace phalanx {

struct StudyTask {
  Study study;
  SubmitOptions submit;  // nodes are the point's
  bool parallel = false;
  bool retry_failed = false;
  /// The point as `phalanx submit` takes it.
  std::function<PreparedRun(const StudyPoint&)> prepare;
  /// Between two looks at the queue; false ends the waiting.
  std::function<bool()> wait;
  /// A line for the user.
  std::function<void(const std::string&)> say;
};

/// What is there now, with efficiencies. `slurm` may be null: then no job is asked about.
StudyReport gather_study(const Study& study, Slurm* slurm);

/// Queues what was never queued (and, where asked, what failed), waits until no job is left,
/// and writes the report whenever a point's state has changed. Throws what `submit_run` throws;
/// points queued by then stay queued. Returns the last report.
StudyReport run_study(const StudyTask& task, Slurm& slurm);

}  // namespace phalanx
