// What tests of the emulator share: a stream, vectors on the device, the text of a broken kernel.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_error.h"
#include "tests/cuda_emulator/order.h"

namespace phalanx::emulator {

template <class T>
using DeviceVector = std::unique_ptr<T, cudaError_t (*)(void*)>;

/// Leaves the device whole and the orders at their defaults.
class EmulatorTest : public testing::Test {
 protected:
  void SetUp() override {
    cuda_check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  void TearDown() override {
    set_order("forward");
    set_stream_pace("eager");
    cudaDeviceReset();
    EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
  }

  template <class T>
  DeviceVector<T> device_vector(const std::vector<T>& values) {
    T* data = nullptr;
    cuda_check(cudaMalloc(&data, values.size() * sizeof(T)), "cudaMalloc");
    cuda_check(cudaMemcpyAsync(data, values.data(), values.size() * sizeof(T),
                               cudaMemcpyHostToDevice, stream_),
               "cudaMemcpyAsync");
    return {data, &cudaFree};
  }
  template <class T>
  std::vector<T> download(const DeviceVector<T>& data, size_t count) {
    std::vector<T> values(count);
    cuda_check(cudaMemcpyAsync(values.data(), data.get(), count * sizeof(T), cudaMemcpyDeviceToHost,
                               stream_),
               "cudaMemcpyAsync");
    cuda_check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    return values;
  }

  /// Waits for the stream, returns the text of the kernel that broke, and repairs the device.
  std::string error_of_device() {
    const cudaError_t error = cudaStreamSynchronize(stream_);
    const std::string text = error == cudaSuccess ? "no error" : cudaGetErrorString(error);
    cudaDeviceReset();
    return text;
  }

  cudaStream_t stream_ = nullptr;
};

}  // namespace phalanx::emulator
