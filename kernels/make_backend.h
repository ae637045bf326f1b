// Makes the backend of a device.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace phalanx {

struct BackendOptions {
  int num_threads = 0;  // of the CPU backend; 0: OpenMP's default
  int local_rank = 0;   // the rank's number on its machine: takes GPU local_rank % GPUs
};

/// GPUs that this process can use: 0 in a build without CUDA or without a driver. Never throws.
int num_cuda_devices();

/// The backend of `device`. Throws UsageError if this build or this machine lacks it.
std::unique_ptr<Backend> make_backend(Device device, const BackendOptions& options = {});

}  // namespace phalanx
