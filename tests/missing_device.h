// What a test program does without the device it is to run on: nothing, and ctest hears of it.
#pragma once

#include <cstdio>

#include "kernels/make_backend.h"
#include "tests/test_device.h"

namespace phalanx::test {

/// 0 if `gpus` GPUs, or any CPU, are there for this run. Else says so and gives 77, which ctest
/// reports as skipped, or 1 if REQUIRE_GPU=1 says that they must be there.
inline int missing_device_code(int gpus = 1) {
  if (test_device() == Device::cpu || num_cuda_devices() >= gpus) return 0;
  const char* required = std::getenv("REQUIRE_GPU");
  const bool fails = required != nullptr && std::string_view(required) == "1";
  std::fprintf(stderr, "%d GPU(s) needed, %d usable: nothing was run%s\n", gpus, num_cuda_devices(),
               fails ? ", but REQUIRE_GPU=1 asks for it" : "");
  return fails ? 1 : 77;
}

}  // namespace phalanx::test
