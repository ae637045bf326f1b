// ProcessGroups: the named groups of one rank, complete or not made at all.
#pragma once

#include <memory>

#include "parallel/device_mesh.h"
#include "parallel/process_group.h"

namespace phalanx {

/// Owns one group per name. Groups of size 1 are real objects.
struct ProcessGroups {
  std::unique_ptr<ProcessGroup> world, tp, cp, dp, dp_cp, pp, ep, expert_tp, expert_dp;
};

/// Groups over MPI_COMM_WORLD (MPI must be initialised with MPI_THREAD_MULTIPLE). Collective.
ProcessGroups make_mpi_process_groups(const DeviceMesh& mesh);

/// Groups of one: a single process without MPI (`phalanx info`, `generate`, unit tests).
ProcessGroups make_single_process_groups();

}  // namespace phalanx
