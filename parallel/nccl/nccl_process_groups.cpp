// The NCCL groups of a mesh, split from one communicator.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <numeric>

#include "kernels/cuda/cuda_error.h"
#include "parallel/nccl/nccl_process_group.h"
#include "parallel/staged_process_group.h"

namespace phalanx {
namespace {

/// Made by rank 0 and told to all over the host.
ncclUniqueId shared_id(ProcessGroup& world) {
  ncclUniqueId id{};
  const ncclResult_t result = world.rank() == 0 ? ncclGetUniqueId(&id) : ncclSuccess;
  std::array<uint8_t, sizeof(id)> bytes{};
  std::memcpy(bytes.data(), &id, sizeof(id));
  // Before the broadcast, so that no rank waits for an id that never comes.
  const int64_t failed = world.all_reduce(int64_t{result != ncclSuccess ? 1 : 0}, ReduceOp::max);
  check(failed == 0, "NCCL gives no id for a communicator: ",
        world.rank() == 0 ? ncclGetErrorString(result) : "rank 0 says why",
        " (NCCL_DEBUG=WARN tells more; --comm mpi does without NCCL)");
  world.broadcast(cpu_tensor(bytes.data(), {static_cast<int64_t>(bytes.size())}), 0);
  std::memcpy(&id, bytes.data(), sizeof(id));
  return id;
}

}  // namespace

std::string gpu_identity() {
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  int device = 0;
  std::array<char, 32> bus{};
  cuda_check(cudaGetDevice(&device), "cudaGetDevice");
  cuda_check(cudaDeviceGetPCIBusId(bus.data(), static_cast<int>(bus.size()), device),
             "cudaDeviceGetPCIBusId");
  return std::string(host.data()) + " " + bus.data();
}

ProcessGroups make_nccl_process_groups(ProcessGroups host, const DeviceMesh& mesh,
                                       CudaBackend& backend, std::chrono::milliseconds timeout) {
  int device = 0;
  cuda_check(cudaGetDevice(&device), "cudaGetDevice");
  constexpr int kLooksPerTimeout = 8;
  constexpr std::chrono::milliseconds kLongestInterval{500};
  const NcclContext context{backend,
                            std::make_shared<NcclWatchdog>(
                                std::min(timeout / kLooksPerTimeout, kLongestInterval), device),
                            timeout};
  const int rank = host.world->rank();
  std::vector<int64_t> everyone(static_cast<size_t>(host.world->size()));
  std::iota(everyone.begin(), everyone.end(), int64_t{0});
  const NcclMembers all{"world", rank, everyone};
  const auto world = std::make_unique<NcclCommunicator>(all, shared_id(*host.world), context);
  std::map<std::string, std::unique_ptr<ProcessGroup>> host_of;
  for (std::unique_ptr<ProcessGroup>* group : all_of(host))
    host_of[(*group)->name()] = std::move(*group);
  return make_process_groups(
      mesh, rank,
      [&](const std::string& name,
          const std::vector<int64_t>& ranks) -> std::unique_ptr<ProcessGroup> {
        std::unique_ptr<ProcessGroup> group = std::move(host_of.at(name));
        // Of one size on all ranks, so that all ranks split or none.
        if (group->size() == 1)
          return std::make_unique<StagedProcessGroup>(std::move(group), backend);
        const NcclMembers members{name, group->rank(), ranks};
        auto communicator = world->split(members, static_cast<int>(ranks.front()));
        return std::make_unique<NcclProcessGroup>(std::move(group), std::move(communicator),
                                                  members, backend);
      });
}

}  // namespace phalanx
