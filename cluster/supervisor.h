// What the batch script runs: one start of the ranks, watched, and what becomes of the job then.
#pragma once

#include "cluster/slurm.h"
#include "cluster/submission.h"

namespace phalanx {

/// Starts the ranks of the job this process is the batch script of, with `--exit-duration-in-mins`
/// from the time the job has left, on the most nodes of the allocation that the layout suits. Keeps
/// the ledger, and when the ranks end leaves the job ended, requeues it or hands it in again. The
/// exit code of the ranks. Throws UsageError outside of a job.
int supervise_run(const PreparedRun& run, const SubmissionRecord& submission, Slurm& slurm);

}  // namespace phalanx
