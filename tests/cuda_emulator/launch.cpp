// Launches: checks of the shape, and the loop over the blocks of a grid on a stream's host thread.
#include "tests/cuda_emulator/launch.h"

#include <fmt/format.h>

#include <map>
#include <mutex>
#include <numeric>
#include <vector>

#include "tests/cuda_emulator/collective.h"
#include "tests/cuda_emulator/counters.h"
#include "tests/cuda_emulator/hopper_block.h"
#include "tests/cuda_emulator/order.h"
#include "tests/cuda_emulator/runtime_state.h"
#include "tests/cuda_emulator/shared_memory.h"
#include "tests/cuda_emulator/symbols.h"

namespace phalanx::emulator {
namespace {

struct SharedLimits {
  std::mutex mutex;
  std::map<const void*, size_t> by_kernel;
};
SharedLimits& shared_limits() {
  static auto* all = new SharedLimits;
  return *all;
}

size_t shared_limit(const void* kernel) {
  const std::lock_guard lock(shared_limits().mutex);
  const auto found = shared_limits().by_kernel.find(kernel);
  return found == shared_limits().by_kernel.end() ? kSharedBytesByDefault : found->second;
}

/// The limits of compute capability 9.0, "Technical Specifications" of the programming guide.
cudaError_t check_shape(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3& block = config.blockDim;
  const dim3& grid = config.gridDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaErrorInvalidConfiguration;
  if (grid.x > 0x7fffffffU || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > shared_limit(kernel)) return cudaErrorInvalidValue;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const auto& size = config.attrs[i].val.clusterDim;
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension && size.x * size.y * size.z != 1)
      return cudaErrorNotSupported;  // blocks run one after another here
  }
  return cudaSuccess;
}

struct Launch {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  const void* kernel = nullptr;
  std::function<void()> body;
};

void run_block(Scheduler& scheduler, const Launch& launch, uint64_t number) {
  const BlockRun run{.index = {static_cast<unsigned>(number % launch.grid.x),
                               static_cast<unsigned>(number / launch.grid.x % launch.grid.y),
                               static_cast<unsigned>(number / launch.grid.x / launch.grid.y)},
                     .threads = launch.block,
                     .grid = launch.grid,
                     .body = &launch.body};
  prepare_shared_memory(launch.shared_bytes);
  start_hopper_block();
  scheduler.run(run);
  check_shared_memory();
  check_meetings();
  finish_hopper_block(scheduler.num_threads());
}

void run_grid(const Launch& launch) {
  thread_local Scheduler scheduler;  // keeps its fibers for the next launch
  const uint64_t count = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  RunOrder order = RunOrder::current();
  // Random: a stride without a common divisor with the count visits every block once.
  const uint64_t offset = order.is_random() ? order.random(count) : 0;
  uint64_t stride = order.is_random() && count > 2 ? 1 + order.random(count - 1) : 1;
  while (std::gcd(stride, count) != 1) stride = stride % count + 1;
  try {
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t number = order.order() == Order::backward ? count - 1 - i : i;
      run_block(scheduler, launch, (offset + number * stride) % count);
    }
  } catch (const KernelError& error) {
    clear_meetings();
    throw KernelError(fmt::format("kernel {}, {}", function_name(launch.kernel), error.what()));
  }
}

}  // namespace

cudaError_t launch_kernel(const cudaLaunchConfig_t& config, const void* kernel,
                          std::function<void()> body) {
  if (const cudaError_t error = check_shape(config, kernel); error != cudaSuccess)
    return note(error);
  if (device_of(config.stream) != current_device()) return note(cudaErrorInvalidResourceHandle);
  ++counters().kernel_launches;
  const auto launch = std::make_shared<const Launch>(
      Launch{config.gridDim, config.blockDim, config.dynamicSmemBytes, kernel, std::move(body)});
  return submit(config.stream, [launch] { run_grid(*launch); });
}

}  // namespace phalanx::emulator

cudaError_t cudaFuncSetAttribute(const void* func, enum cudaFuncAttribute attr, int value) {
  using namespace phalanx::emulator;  // NOLINT: the API is C
  if (attr != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > kSharedBytesAtMost)
    return note(cudaErrorInvalidValue);
  const std::lock_guard lock(shared_limits().mutex);
  auto& limit = shared_limits().by_kernel.try_emplace(func, kSharedBytesByDefault).first->second;
  limit = std::max(kSharedBytesByDefault, static_cast<size_t>(value));
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* attr, const void*) {
  *attr = {.sharedSizeBytes = 0, .maxThreadsPerBlock = 1024, .numRegs = 64};
  return cudaSuccess;
}
