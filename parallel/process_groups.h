// ProcessGroups: the named groups of one rank, complete or not made at all.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/device_mesh.h"
#include "parallel/process_group.h"

namespace phalanx {

/// Owns one group per name. Groups of size 1 are real objects.
struct ProcessGroups {
  std::unique_ptr<ProcessGroup> world, tp, cp, dp, dp_cp, pp, ep, expert_tp, expert_dp;
};

/// Makes the group called `name` of these ranks (ascending, the caller among them).
using GroupFactory = std::function<std::unique_ptr<ProcessGroup>(
    const std::string& name, const std::vector<int64_t>& ranks)>;

/// All groups of `rank`, through `make_group` in the same order on every rank. The one place that
/// says which axes a group spans.
ProcessGroups make_process_groups(const DeviceMesh& mesh, int64_t rank,
                                  const GroupFactory& make_group);

/// Groups over MPI_COMM_WORLD (MPI must be initialised with MPI_THREAD_MULTIPLE). Collective.
ProcessGroups make_mpi_process_groups(const DeviceMesh& mesh);

/// Groups of one: a single process without MPI (`phalanx info`, `generate`, unit tests).
ProcessGroups make_single_process_groups();

/// Groups that have the sizes of `mesh` and communicate nothing: for measuring the memory of `rank`
/// with a null backend and measuring arenas, on any mesh, in one process.
ProcessGroups make_measuring_process_groups(const DeviceMesh& mesh, int64_t rank);
/// The same with the names, ranks and sizes of `groups`.
ProcessGroups make_measuring_process_groups(const ProcessGroups& groups);

}  // namespace phalanx
