// Where device-independent tests run: PHALANX_TEST_DEVICE=cpu (the default) or cuda. The same
// program then runs the same tests on a GPU, or, linked to the emulated one, without.
#pragma once

#include <cstdlib>
#include <string_view>

#include "kernels/base/tensor.h"

namespace phalanx::test {

inline Device test_device() {
  const char* name = std::getenv("PHALANX_TEST_DEVICE");
  if (name == nullptr || std::string_view(name) == "cpu") return Device::cpu;
  check(std::string_view(name) == "cuda", "PHALANX_TEST_DEVICE '", name,
        "' is neither cpu nor cuda");
  return Device::cuda;
}

}  // namespace phalanx::test
