// make_device_process_groups: the one place that knows whether this build has NCCL. Compiled into
// each program (CMake's phalanx_device), as kernels/make_backend.cpp is.
#include <algorithm>
#include <string>
#include <vector>

#include "kernels/base/log.h"
#include "parallel/staged_process_group.h"
#ifdef PHALANX_HAS_NCCL
#include "parallel/nccl/nccl_process_group.h"
#endif

namespace phalanx {
namespace {

#ifdef PHALANX_HAS_NCCL

/// Why NCCL cannot carry the ranks of `world`: the same on all of them; empty if it can.
std::string reason_against_nccl(ProcessGroup& world) {
  constexpr size_t kBytes = 512;
  std::string own = gpu_identity();
  own.resize(kBytes);
  std::string all(kBytes * static_cast<size_t>(world.size()), '\0');
  world.all_gather(cpu_tensor(reinterpret_cast<uint8_t*>(all.data()), {std::ssize(all)}),
                   cpu_tensor(reinterpret_cast<const uint8_t*>(own.data()), {std::ssize(own)}));
  std::vector<std::string> gpus;
  for (size_t rank = 0; rank < static_cast<size_t>(world.size()); ++rank) {
    std::string gpu = all.substr(rank * kBytes, kBytes);
    gpu.resize(gpu.find('\0'));
    const auto first = std::ranges::find(gpus, gpu);
    if (first != gpus.end())
      return "ranks " + std::to_string(first - gpus.begin()) + " and " + std::to_string(rank) +
             " share one GPU (" + gpu + ")";
    gpus.push_back(gpu);
  }
  return {};
}

ProcessGroups over_nccl(ProcessGroups host, const DeviceMesh& mesh, Backend& backend) {
  return make_nccl_process_groups(std::move(host), mesh, dynamic_cast<CudaBackend&>(backend));
}

#else

std::string reason_against_nccl(ProcessGroup&) {
  return "this build has no NCCL";
}

ProcessGroups over_nccl(ProcessGroups host, const DeviceMesh&, Backend&) {
  return host;
}

#endif

}  // namespace

ProcessGroups make_device_process_groups(const DeviceMesh& mesh, Backend& backend,
                                         Communication communication) {
  const bool nccl_wanted = communication == Communication::nccl;
  check_usage(!nccl_wanted || backend.device() == Device::cuda,
              "--comm nccl carries tensors of GPUs, but this run computes on the CPU; use --comm "
              "auto, or --device cuda");
  ProcessGroups host = make_mpi_process_groups(mesh);
  if (backend.device() == Device::cpu) return host;
  if (communication == Communication::mpi || host.world->size() == 1)
    return staged(std::move(host), backend);
  const std::string reason = reason_against_nccl(*host.world);
  check_usage(!nccl_wanted || reason.empty(), "--comm nccl is not possible: ", reason,
              "; use --comm mpi, or start with a GPU for each rank");
  if (reason.empty()) return over_nccl(std::move(host), mesh, backend);
  if (host.world->rank() == 0)
    log_line("tensors travel between ranks over MPI and host memory, because " + reason);
  return staged(std::move(host), backend);
}

}  // namespace phalanx
