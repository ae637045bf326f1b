// Kernel launches with their arguments copied at the launch.
#pragma once

#include <functional>
#include <tuple>
#include <utility>

#include "tests/cuda_emulator/include/cuda_runtime_api.h"

namespace phalanx::emulator {
/// Checks the shape and queues the kernel, whose thread is `body`.
cudaError_t launch_kernel(const cudaLaunchConfig_t& config, const void* kernel,
                          std::function<void()> body);
}  // namespace phalanx::emulator

template <class... Expected, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Actual&&... arguments) {
  std::tuple<Expected...> copies{static_cast<Expected>(std::forward<Actual>(arguments))...};
  return phalanx::emulator::launch_kernel(
      *config, reinterpret_cast<const void*>(kernel),
      [kernel, copies = std::move(copies)] { std::apply(kernel, copies); });
}
