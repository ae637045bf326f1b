// Events as stamps.
#include "kernels/cuda/device_clock.h"

#include <nvtx3/nvToolsExt.h>

#include "kernels/cuda/cuda_error.h"

namespace phalanx {

CudaClock::~CudaClock() {
  for (cudaEvent_t event : events_) static_cast<void>(cudaEventDestroy(event));
}

void CudaClock::mark() {
  cudaEvent_t event = nullptr;
  cuda_check(cudaEventCreate(&event), "cudaEventCreate");
  events_.push_back(event);
  cuda_check(cudaEventRecord(event, stream_), "cudaEventRecord");
}

std::vector<double> CudaClock::seconds() {
  std::vector<double> seconds;
  for (cudaEvent_t event : events_) {
    cuda_check(cudaEventSynchronize(event), "cudaEventSynchronize");
    float milliseconds = 0;
    cuda_check(cudaEventElapsedTime(&milliseconds, events_.front(), event), "cudaEventElapsedTime");
    seconds.push_back(1e-3 * static_cast<double>(milliseconds));
  }
  return seconds;
}

void send_ranges_to_nvtx() {
  range_hooks() = {.push = [](const char* name) { nvtxRangePushA(name); },
                   .pop = [] { nvtxRangePop(); }};
}

}  // namespace phalanx
