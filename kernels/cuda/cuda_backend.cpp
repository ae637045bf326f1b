// The backend's life, memory and copies between host and device.
#include "kernels/cuda/cuda_backend.h"

#include "kernels/base/log.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/device_clock.h"

namespace phalanx {

int cuda_device_count() {
  int count = 0;
  const bool usable = cudaGetDeviceCount(&count) == cudaSuccess;
  static_cast<void>(cudaGetLastError());  // no driver is no error of later calls
  return usable ? count : 0;
}

CudaBackend::CudaBackend(int device_index)
    : device_index_(device_index), staging_(std::make_unique<HostStaging>()) {
  cuda_check(cudaSetDevice(device_index_), "cudaSetDevice");
  cuda_check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  cuda_check(cudaStreamCreateWithFlags(&copy_stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  cuda_check(cudaEventCreateWithFlags(&early_uploaded_, cudaEventDisableTiming), "cudaEventCreate");
  cuda_check(
      cudaDeviceGetAttribute(&num_multiprocessors_, cudaDevAttrMultiProcessorCount, device_index_),
      "cudaDeviceGetAttribute");
}

CudaBackend::~CudaBackend() {
  static_cast<void>(cudaStreamSynchronize(copy_stream_));
  static_cast<void>(cudaStreamSynchronize(stream_));
  staging_.reset();
  static_cast<void>(cudaEventDestroy(early_uploaded_));
  static_cast<void>(cudaStreamDestroy(copy_stream_));
  static_cast<void>(cudaStreamDestroy(stream_));
}

DeviceInfo CudaBackend::info() const {
  cudaDeviceProp properties{};
  cuda_check(cudaGetDeviceProperties(&properties, device_index_), "cudaGetDeviceProperties");
  char bus_id[32] = {};
  cuda_check(cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), device_index_), "cudaDeviceGetPCIBusId");
  size_t free = 0;
  size_t total = 0;
  cuda_check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return {.name = properties.name, .memory_key = bus_id, .free_bytes = static_cast<int64_t>(free)};
}

void CudaBackend::reserve(int64_t bytes) {
  check(!block_, "memory has been reserved before; reserve once");
  block_ = std::make_shared<DeviceBlock>(bytes);
  // First, so that it never comes to lie between pieces that are given back.
  workspace(1);
}

std::shared_ptr<void> CudaBackend::allocate(int64_t bytes) {
  if (bytes == 0) return nullptr;
  std::shared_ptr<void> owner;
  if (void* piece = block_ ? block_->take(bytes) : nullptr; piece != nullptr) {
    owner = {piece, [block = block_](void* pointer) { block->give_back(pointer); }};
  } else {
    if (block_)
      log_info("{} bytes of GPU memory are taken beyond the {} that were planned", bytes,
               block_->bytes());
    cuda_check(cudaMalloc(&piece, static_cast<size_t>(bytes)), "cudaMalloc");
    owner = {piece, [](void* pointer) { static_cast<void>(cudaFree(pointer)); }};
  }
  cuda_check(cudaMemsetAsync(owner.get(), 0, static_cast<size_t>(bytes), stream_),
             "cudaMemsetAsync");
  return owner;
}

void CudaBackend::synchronize() {
  cuda_check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

std::unique_ptr<DeviceClock> CudaBackend::device_clock() {
  return std::make_unique<CudaClock>(stream_);
}

void* CudaBackend::workspace(int64_t bytes) {
  const int64_t most = workspace_bytes(Device::cuda);
  check(bytes <= most, "an op asked for ", bytes, " bytes of workspace, of ", most);
  if (!workspace_) workspace_ = allocate(most);
  return workspace_.get();
}

void CudaBackend::upload_impl(const Tensor& target, const void* source) {
  staging_->to_device({target.data, target.bytes(), target.bytes(), 1}, source, stream_);
}

void CudaBackend::upload_early_impl(const Tensor& target, const void* source) {
  staging_->to_device({target.data, target.bytes(), target.bytes(), 1}, source, copy_stream_);
  cuda_check(cudaEventRecord(early_uploaded_, copy_stream_), "cudaEventRecord");
  cuda_check(cudaStreamWaitEvent(stream_, early_uploaded_, 0), "cudaStreamWaitEvent");
}

void CudaBackend::upload_columns_impl(const Tensor& target, int64_t column, int64_t columns,
                                      const void* source) {
  const int64_t element = dtype_bytes(target.dtype);
  staging_->to_device({.target = static_cast<char*>(target.data) + column * element,
                       .pitch = target.shape[1] * element,
                       .row_bytes = columns * element,
                       .rows = target.shape[0]},
                      source, stream_);
}

void CudaBackend::download_impl(void* target, const Tensor& source) {
  staging_->to_host(target, source.data, source.bytes(), stream_);
}

}  // namespace phalanx
