// make_backend: the one place that knows which backends this build has. Compiled into each program
// (CMake's phalanx_device), because tests link it to an emulated device too.
#include "kernels/make_backend.h"

#include "kernels/cpu/cpu_backend.h"
#ifdef PHALANX_HAS_CUDA
#include "kernels/cuda/cuda_backend.h"
#endif

namespace phalanx {

#ifdef PHALANX_HAS_CUDA

int num_cuda_devices() {
  return cuda_device_count();
}

std::unique_ptr<Backend> make_backend(Device device, const BackendOptions& options) {
  if (device == Device::cpu) return std::make_unique<CpuBackend>(options.num_threads);
  const int count = num_cuda_devices();
  check_usage(count > 0,
              "no usable GPU: CUDA finds no driver or no device on this machine; use "
              "--device cpu, or start where nvidia-smi lists a GPU");
  return std::make_unique<CudaBackend>(options.local_rank % count);
}

#else

int num_cuda_devices() {
  return 0;
}

std::unique_ptr<Backend> make_backend(Device device, const BackendOptions& options) {
  check_usage(device == Device::cpu,
              "this build has no CUDA backend; use --device cpu, or configure with "
              "-DPHALANX_CUDA=ON where CUDA's toolkit is");
  return std::make_unique<CpuBackend>(options.num_threads);
}

#endif

}  // namespace phalanx
