// The GPU's own clock for profiles, and NVTX ranges for NVIDIA's profilers.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels/base/trace.h"

namespace phalanx {

/// Stamps are events on `stream`. One thread calls.
class CudaClock final : public DeviceClock {
 public:
  explicit CudaClock(cudaStream_t stream) : stream_(stream) {}
  ~CudaClock() override;
  void mark() override;
  std::vector<double> seconds() override;

 private:
  cudaStream_t stream_;
  std::vector<cudaEvent_t> events_;
};

/// From now on every range of the program is an NVTX range too (nothing without a profiler).
void send_ranges_to_nvtx();

}  // namespace phalanx
