// main of tests that run on any device, see missing_device.h.
#include <gtest/gtest.h>

#include "tests/missing_device.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (const int code = phalanx::test::missing_device_code(); code != 0) return code;
  return RUN_ALL_TESTS();
}
