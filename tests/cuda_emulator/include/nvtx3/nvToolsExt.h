// Emulated NVTX: ranges only count (tests/cuda_emulator/counters.h).
#pragma once

#include "tests/cuda_emulator/counters.h"

inline int nvtxRangePushA(const char* message) {
  return phalanx::emulator::push_range(message);
}
inline int nvtxRangePop() {
  return phalanx::emulator::pop_range();
}
