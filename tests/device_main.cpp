// main of tests that run on any device. On a device that is not there nothing runs: the program
// ends with 77, which ctest reports as skipped, or with 1 if REQUIRE_GPU=1 says that it must be.
#include <gtest/gtest.h>

#include <cstdio>

#include "kernels/make_backend.h"
#include "tests/test_device.h"

int main(int argc, char** argv) {
  using namespace phalanx;
  testing::InitGoogleTest(&argc, argv);
  if (test::test_device() == Device::cuda && num_cuda_devices() == 0) {
    const char* required = std::getenv("REQUIRE_GPU");
    const bool fails = required != nullptr && std::string_view(required) == "1";
    std::fprintf(stderr, "no usable GPU: the tests of --device cuda do not run%s\n",
                 fails ? ", but REQUIRE_GPU=1 asks for them" : "");
    return fails ? 1 : 77;
  }
  return RUN_ALL_TESTS();
}
