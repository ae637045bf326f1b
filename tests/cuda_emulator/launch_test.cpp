// Launches in the emulator: indices, shared memory, limits, errors of kernels, orders of threads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/reduce.h"
#include "tests/cuda_emulator/counters.h"
#include "tests/cuda_emulator/emulator_fixture.h"

namespace phalanx {
namespace {

using emulator::EmulatorTest;
using testing::AllOf;
using testing::HasSubstr;

__global__ void write_indices(int* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] +=
      static_cast<int>(block * 1000 + thread);
}

TEST_F(EmulatorTest, EveryThreadOfEveryBlockRunsOnce) {
  for (const char* order : {"forward", "backward", "random:3"}) {
    emulator::set_order(order);
    auto out = device_vector<int>(std::vector<int>(size_t{2 * 3 * 5} * 4 * 3 * 2, 0));
    launch(write_indices, {dim3(2, 3, 5), dim3(4, 3, 2)}, stream_, out.get());
    const auto values = download(out, size_t{30} * 24);
    for (size_t i = 0; i < values.size(); ++i)
      EXPECT_EQ(values[i], static_cast<int>(i / 24 * 1000 + i % 24)) << order;
  }
}

template <class T>
__global__ void sum_of_block(T* out, const T* in) {
  __shared__ T scratch[32];
  const T sum = block_sum(in[threadIdx.x], scratch);
  out[threadIdx.x] = sum;
}

TEST_F(EmulatorTest, BlockSumsInAnyOrder) {
  std::vector<double> numbers(256);
  std::iota(numbers.begin(), numbers.end(), 1.0);
  for (const char* order : {"forward", "backward", "random:1", "random:2"}) {
    emulator::set_order(order);
    auto in = device_vector(numbers);
    auto out = device_vector(std::vector<double>(256, 0.0));
    launch(sum_of_block<double>, {dim3(1), dim3(256)}, stream_, out.get(), in.get());
    EXPECT_THAT(download(out, 256), testing::Each(256.0 * 257.0 / 2)) << order;
  }
}

__global__ void race(int* out) {
  __shared__ int cell[64];
  cell[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = cell[(threadIdx.x + 33) % 64];  // no barrier in between
}

TEST_F(EmulatorTest, ARaceShowsInsteadOfTheRightResult) {
  auto out = device_vector(std::vector<int>(64, 0));
  launch(race, {dim3(1), dim3(64)}, stream_, out.get());
  const auto forward = download(out, 64);
  emulator::set_order("backward");
  launch(race, {dim3(1), dim3(64)}, stream_, out.get());
  EXPECT_NE(forward, download(out, 64));
  EXPECT_EQ(forward[0], -1) << "shared memory is poisoned before the block";
}

__global__ void read_shared(unsigned* out) {
  out[threadIdx.x] = dynamic_shared<unsigned>()[threadIdx.x];
}
__global__ void write_behind(int index) {
  dynamic_shared<char>()[index] = 1;
}

TEST_F(EmulatorTest, DynamicSharedMemoryIsPoisonedAndBounded) {
  auto out = device_vector(std::vector<unsigned>(32, 0));
  launch(read_shared, {dim3(1), dim3(32), 128}, stream_, out.get());
  EXPECT_THAT(download(out, 32), testing::Each(0xffffffffU));
#ifndef __SANITIZE_ADDRESS__  // which stops the program instead
  launch(write_behind, {dim3(1), dim3(1), 128}, stream_, 130);
  EXPECT_THAT(error_of_device(), HasSubstr("2 bytes behind the 128 bytes of dynamic shared"));
#endif
  launch(read_shared, {dim3(1), dim3(1)}, stream_, out.get());
  EXPECT_THAT(error_of_device(), HasSubstr("no dynamic shared memory"));
}

TEST_F(EmulatorTest, LaunchesBeyondTheLimitsAreRefused) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(32);
  config.stream = stream_;
  const auto code = [&] { return cudaLaunchKernelEx(&config, write_behind, 0); };
  config.dynamicSmemBytes = (48 << 10) + 1;
  EXPECT_EQ(code(), cudaErrorInvalidValue) << "not asked for";
  EXPECT_EQ(cudaFuncSetAttribute(write_behind, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (227 << 10) + 1),
            cudaErrorInvalidValue);
  EXPECT_EQ(
      cudaFuncSetAttribute(write_behind, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 << 10),
      cudaSuccess);
  config.dynamicSmemBytes = 227 << 10;
  EXPECT_EQ(code(), cudaSuccess);
  config.dynamicSmemBytes = 1;
  config.blockDim = dim3(1025);
  EXPECT_EQ(code(), cudaErrorInvalidConfiguration);
  config.blockDim = dim3(1, 1, 65);
  EXPECT_EQ(code(), cudaErrorInvalidConfiguration);
  config.blockDim = dim3(1);
  config.gridDim = dim3(1, 65536);
  EXPECT_EQ(code(), cudaErrorInvalidConfiguration);
  config.gridDim = dim3(0);
  EXPECT_EQ(code(), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

__global__ void barrier_for_some() {
  if (threadIdx.x < 40) __syncthreads();
}
__global__ void barriers_in_two_places() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void two_shuffles(int* out) {
  int value = static_cast<int>(threadIdx.x);
  if (threadIdx.x < 7) {
    value = __shfl_xor_sync(kAllLanes, value, 1);
  } else {
    value = __shfl_xor_sync(kAllLanes, value, 2);
  }
  out[threadIdx.x] = value;
}
__global__ void masks_that_differ() {
  __syncwarp(threadIdx.x == 1 ? 0x7fffffffU : 0xffffffffU);
}
__global__ void outside_of_mask() {
  __syncwarp(0xfffffffeU);
}
__global__ void barrier_of_33() {
  named_barrier(1, 33);
}

TEST_F(EmulatorTest, MisuseIsAnErrorThatNamesItsPlace) {
  auto out = device_vector(std::vector<int>(64, 0));
  launch(barrier_for_some, {dim3(3), dim3(64)}, stream_);
  EXPECT_THAT(error_of_device(),
              AllOf(HasSubstr("barrier_for_some"), HasSubstr("block (0, 0, 0)"),
                    HasSubstr("no thread can go on"), HasSubstr("[40-63] have ended"),
                    HasSubstr("[0-39] wait in __syncthreads at launch_test.cpp")));
  launch(barriers_in_two_places, {dim3(1), dim3(64)}, stream_);
  EXPECT_THAT(error_of_device(), AllOf(HasSubstr("thread (32, 0, 0)"), HasSubstr("divergence")));
  launch(two_shuffles, {dim3(1), dim3(64)}, stream_, out.get());
  EXPECT_THAT(error_of_device(), AllOf(HasSubstr("thread (7, 0, 0)"), HasSubstr("__shfl_xor_sync"),
                                       HasSubstr("divergence")));
  launch(masks_that_differ, {dim3(1), dim3(32)}, stream_);
  EXPECT_THAT(error_of_device(), HasSubstr("0x7fffffff"));
  launch(outside_of_mask, {dim3(1), dim3(32)}, stream_);
  EXPECT_THAT(error_of_device(), HasSubstr("not in its own mask"));
  launch(barrier_of_33, {dim3(1), dim3(64)}, stream_);
  EXPECT_THAT(error_of_device(), HasSubstr("multiple of 32"));
}

TEST_F(EmulatorTest, ABrokenKernelBreaksTheDevice) {
  launch(barrier_for_some, {dim3(1), dim3(64)}, stream_);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorLaunchFailure);
  void* pointer = nullptr;
  EXPECT_EQ(cudaMalloc(&pointer, 16), cudaErrorLaunchFailure);
  EXPECT_THAT(cudaGetErrorString(cudaErrorLaunchFailure), HasSubstr("barrier_for_some"));
  EXPECT_THAT(error_of_device(), HasSubstr("barrier_for_some"));  // and repairs it
  EXPECT_EQ(cudaMalloc(&pointer, 16), cudaSuccess);
  EXPECT_EQ(cudaFree(pointer), cudaSuccess);
}

}  // namespace
}  // namespace phalanx
