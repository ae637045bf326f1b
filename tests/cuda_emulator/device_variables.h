// The built-in variables of device code. Set by the scheduler at every switch of threads.
#pragma once

#include "tests/cuda_emulator/include/vector_types.h"

extern __thread uint3 threadIdx;
extern __thread uint3 blockIdx;
extern __thread dim3 blockDim;
extern __thread dim3 gridDim;
inline constexpr int warpSize = 32;
