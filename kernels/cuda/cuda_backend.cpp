// The backend's life, memory and copies between host and device.
#include "kernels/cuda/cuda_backend.h"

#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/device_clock.h"

namespace phalanx {

int cuda_device_count() {
  int count = 0;
  const bool usable = cudaGetDeviceCount(&count) == cudaSuccess;
  static_cast<void>(cudaGetLastError());  // no driver is no error of later calls
  return usable ? count : 0;
}

CudaBackend::CudaBackend(int device_index) : device_index_(device_index) {
  cuda_check(cudaSetDevice(device_index_), "cudaSetDevice");
  cuda_check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  cuda_check(
      cudaDeviceGetAttribute(&num_multiprocessors_, cudaDevAttrMultiProcessorCount, device_index_),
      "cudaDeviceGetAttribute");
}

CudaBackend::~CudaBackend() {
  static_cast<void>(cudaStreamSynchronize(stream_));
  static_cast<void>(cudaStreamDestroy(stream_));
}

std::shared_ptr<void> CudaBackend::allocate(int64_t bytes) {
  if (bytes == 0) return nullptr;
  void* block = nullptr;
  cuda_check(cudaMalloc(&block, static_cast<size_t>(bytes)), "cudaMalloc");
  std::shared_ptr<void> owner(block, [](void* pointer) { static_cast<void>(cudaFree(pointer)); });
  cuda_check(cudaMemsetAsync(block, 0, static_cast<size_t>(bytes), stream_), "cudaMemsetAsync");
  return owner;
}

void CudaBackend::synchronize() {
  cuda_check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

std::unique_ptr<DeviceClock> CudaBackend::device_clock() {
  return std::make_unique<CudaClock>(stream_);
}

void* CudaBackend::workspace(int64_t bytes) {
  check(bytes <= kWorkspaceBytes, "an op asked for ", bytes, " bytes of workspace, of ",
        kWorkspaceBytes);
  if (!workspace_) workspace_ = allocate(kWorkspaceBytes);
  return workspace_.get();
}

void CudaBackend::upload_impl(const Tensor& target, const void* source) {
  cuda_check(cudaMemcpyAsync(target.data, source, static_cast<size_t>(target.bytes()),
                             cudaMemcpyHostToDevice, stream_),
             "cudaMemcpyAsync");
}

void CudaBackend::download_impl(void* target, const Tensor& source) {
  cuda_check(cudaMemcpyAsync(target, source.data, static_cast<size_t>(source.bytes()),
                             cudaMemcpyDeviceToHost, stream_),
             "cudaMemcpyAsync");
  synchronize();
}

}  // namespace phalanx
