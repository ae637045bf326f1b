// Emulated CUDA: what <cuda_runtime.h> gives to host and device code, for plain g++.
#pragma once

#include <cuda_runtime_api.h>
#include "tests/cuda_emulator/device_code.h"
#include "tests/cuda_emulator/launch.h"
