// ProcessGroups: the named groups of one rank, complete or not made at all.
#pragma once

#include <array>
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

/// All of them, in the order of the declaration.
inline std::array<std::unique_ptr<ProcessGroup>*, 9> all_of(ProcessGroups& groups) {
  return {&groups.world, &groups.tp, &groups.cp,        &groups.dp,       &groups.dp_cp,
          &groups.pp,    &groups.ep, &groups.expert_tp, &groups.expert_dp};
}

/// Makes the group called `name` of these ranks (ascending, the caller among them).
using GroupFactory = std::function<std::unique_ptr<ProcessGroup>(
    const std::string& name, const std::vector<int64_t>& ranks)>;

/// All groups of `rank`, through `make_group` in the same order on every rank. The one place that
/// says which axes a group spans.
ProcessGroups make_process_groups(const DeviceMesh& mesh, int64_t rank,
                                  const GroupFactory& make_group);

/// Groups over MPI_COMM_WORLD (MPI must be initialised with MPI_THREAD_MULTIPLE). Collective.
ProcessGroups make_mpi_process_groups(const DeviceMesh& mesh);

/// The groups of a run that computes on `backend`'s device: over MPI on the CPU; on a GPU as
/// `communication` says, and where it leaves the choice over NCCL if this build has it and no two
/// ranks share a GPU, else over MPI with host staging, which is logged with the reason. Throws
/// UsageError where NCCL is asked for and cannot be. Collective, as make_mpi_process_groups.
ProcessGroups make_device_process_groups(const DeviceMesh& mesh, Backend& backend,
                                         Communication communication);

/// Groups of one: a single process without MPI (`phalanx info`, `generate`, unit tests).
/// `device_ops` for tensors of a device.
ProcessGroups make_single_process_groups(Backend* device_ops = nullptr);

/// Groups that have the sizes of `mesh` and communicate nothing: for measuring the memory of `rank`
/// with a null backend and measuring arenas, on any mesh, in one process.
ProcessGroups make_measuring_process_groups(const DeviceMesh& mesh, int64_t rank);
/// The same with the names, ranks and sizes of `groups`.
ProcessGroups make_measuring_process_groups(const ProcessGroups& groups);

}  // namespace phalanx
