// cuda_check: turns CUDA's error codes into errors with CUDA's own words.
#pragma once

#include <cuda_runtime_api.h>

#include <source_location>

#include "kernels/base/error.h"

namespace phalanx {

/// Throws unless `code` is cudaSuccess. Errors of kernels surface at a later call.
void cuda_check(cudaError_t code, const char* call,
                std::source_location where = std::source_location::current());

}  // namespace phalanx
