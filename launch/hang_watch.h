// The hang doctor of a subcommand's ranks.
#pragma once

#include <memory>

#include "core/config.h"
#include "core/train/hang_doctor.h"
#include "launch/mpi_ranks.h"

namespace phalanx {

/// Starts this rank's flight recorder and hang doctor for a run in config's run folder. Where any
/// rank cannot have its record there, or not all of them see the same folder, all go on without,
/// and rank 0 says so. Null then, and without a run folder. Collective.
std::unique_ptr<HangDoctor> watch_ranks(const RunConfig& config, const Ranks& ranks,
                                        const DeviceMesh& mesh);

}  // namespace phalanx
