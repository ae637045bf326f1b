// The emulated runtime: memory, copies, streams that are really asynchronous, events.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>
#include <vector>

#include "kernels/cuda/launch.h"
#include "tests/cuda_emulator/counters.h"
#include "tests/cuda_emulator/emulator_fixture.h"

namespace phalanx {
namespace {

using emulator::counters;
using emulator::EmulatorTest;

template <class T>
__global__ void add_number(T* values, int64_t count, T number) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) values[i] += number;
}

TEST_F(EmulatorTest, MemoryIsPoisonedCountedAndLimited) {
  size_t free_before = 0;
  size_t total = 0;
  EXPECT_EQ(cudaMemGetInfo(&free_before, &total), cudaSuccess);
  EXPECT_EQ(total, size_t{2} << 30);
  float* data = nullptr;
  ASSERT_EQ(cudaMalloc(&data, 1000 * sizeof(float)), cudaSuccess);
  size_t free_after = 0;
  EXPECT_EQ(cudaMemGetInfo(&free_after, &total), cudaSuccess);
  EXPECT_EQ(free_before - free_after, 4000U);
  float value = 0;
  EXPECT_EQ(cudaMemcpy(&value, data + 999, sizeof(float), cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_TRUE(std::isnan(value));
  void* large = &total;
  EXPECT_EQ(cudaMalloc(&large, total - 3999), cudaErrorMemoryAllocation);
  EXPECT_EQ(large, nullptr);
  EXPECT_EQ(cudaFree(data + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeHost(data), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(&value), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(data), cudaSuccess);
  EXPECT_EQ(cudaFree(data), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
}

TEST_F(EmulatorTest, CopiesGoWhereTheyShould) {
  auto data = device_vector(std::vector<int>(100, 7));
  int host[100] = {};
  const auto copy = [&](void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, stream_);
  };
  EXPECT_EQ(copy(host, data.get(), 400, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_THAT(host, testing::Each(7)) << "pageable memory is written before the call returns";
  EXPECT_EQ(copy(host, data.get() + 1, 400, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(copy(data.get(), host, 400, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(copy(host, host + 1, 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(data.get(), data.get() + 50, 200, cudaMemcpyDefault), cudaSuccess);
  EXPECT_EQ(cudaMemset2DAsync(data.get(), 40, 0, 8, 10, stream_), cudaSuccess);
  int pairs[10][2];
  EXPECT_EQ(cudaMemcpy2DAsync(pairs, 8, data.get() + 1, 40, 8, 10, cudaMemcpyDeviceToHost, stream_),
            cudaSuccess);
  for (const auto& pair : pairs) EXPECT_THAT(pair, testing::ElementsAre(0, 7));
  EXPECT_EQ(cudaMemsetAsync(data.get(), 0, 401, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemsetAsync(host, 0, 4, stream_), cudaErrorInvalidValue);
}

TEST_F(EmulatorTest, AMissingWaitShowsUnderLazyStreams) {
  emulator::set_stream_pace("lazy");
  int* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, sizeof(int)), cudaSuccess);
  *pinned = 1;
  auto data = device_vector(std::vector<int>{41});
  launch(add_number<int>, {dim3(1), dim3(1)}, stream_, data.get(), int64_t{1}, 1);
  ASSERT_EQ(cudaMemcpyAsync(pinned, data.get(), sizeof(int), cudaMemcpyDeviceToHost, stream_),
            cudaSuccess);
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(*pinned, 1) << "nobody waited";
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(*pinned, 42);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

/// Holds a stream until it is told to go on.
struct Gate {
  std::atomic<bool> open{false};
  static void wait(void* gate) {
    while (!static_cast<Gate*>(gate)->open) std::this_thread::yield();
  }
};

TEST_F(EmulatorTest, StreamsRunBesideTheHostAndEachOther) {
  cudaStream_t other = nullptr;
  ASSERT_EQ(cudaStreamCreateWithPriority(&other, cudaStreamNonBlocking, -1), cudaSuccess);
  Gate gate;
  auto data = device_vector(std::vector<int>{0});
  ASSERT_EQ(cudaLaunchHostFunc(stream_, &Gate::wait, &gate), cudaSuccess);
  launch(add_number<int>, {dim3(1), dim3(1)}, stream_, data.get(), int64_t{1}, 1);
  EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "not being ready is no error";
  launch(add_number<int>, {dim3(1), dim3(1)}, other, data.get(), int64_t{1}, 10);
  EXPECT_EQ(cudaStreamSynchronize(other), cudaSuccess);
  int value = 0;
  EXPECT_EQ(cudaMemcpyAsync(&value, data.get(), sizeof(int), cudaMemcpyDeviceToHost, other),
            cudaSuccess);
  EXPECT_EQ(value, 10);
  gate.open = true;
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(stream_), cudaSuccess);
  EXPECT_EQ(download(data, 1)[0], 11);
  EXPECT_EQ(cudaStreamDestroy(other), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(other), cudaErrorInvalidResourceHandle);
}

TEST_F(EmulatorTest, EventsOrderStreams) {
  for (const char* pace : {"eager", "lazy", "random"}) {
    emulator::set_stream_pace(pace);
    cudaStream_t other = nullptr;
    cudaEvent_t event = nullptr;
    ASSERT_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
    EXPECT_EQ(cudaEventQuery(event), cudaSuccess) << "never recorded";
    Gate gate;
    auto data = device_vector(std::vector<int>{1});
    ASSERT_EQ(cudaLaunchHostFunc(stream_, &Gate::wait, &gate), cudaSuccess);
    launch(add_number<int>, {dim3(1), dim3(1)}, stream_, data.get(), int64_t{1}, 1);
    ASSERT_EQ(cudaEventRecord(event, stream_), cudaSuccess);
    ASSERT_EQ(cudaStreamWaitEvent(other, event), cudaSuccess);
    EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
    int* pinned = nullptr;
    gate.open = true;  // cudaMallocHost may wait
    ASSERT_EQ(cudaMallocHost(&pinned, sizeof(int)), cudaSuccess);
    ASSERT_EQ(cudaMemcpyAsync(pinned, data.get(), sizeof(int), cudaMemcpyDeviceToHost, other),
              cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(other), cudaSuccess);
    EXPECT_EQ(*pinned, 2) << pace;
    EXPECT_EQ(cudaEventSynchronize(event), cudaSuccess);
    EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
    EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(other), cudaSuccess);
  }
}

TEST_F(EmulatorTest, EventsMeasureTime) {
  cudaEvent_t events[2];
  for (auto& event : events) ASSERT_EQ(cudaEventCreate(&event), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(events[0], stream_), cudaSuccess);
  ASSERT_EQ(cudaLaunchHostFunc(
                stream_, [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(20)); },
                nullptr),
            cudaSuccess);
  ASSERT_EQ(cudaEventRecord(events[1], stream_), cudaSuccess);
  ASSERT_EQ(cudaEventSynchronize(events[1]), cudaSuccess);
  float milliseconds = 0;
  ASSERT_EQ(cudaEventElapsedTime(&milliseconds, events[0], events[1]), cudaSuccess);
  EXPECT_GE(milliseconds, 20.0F);
  for (auto& event : events) EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
}

TEST_F(EmulatorTest, TheDefaultStreamIsOrderedWithBlockingStreams) {
  cudaStream_t blocking = nullptr;
  ASSERT_EQ(cudaStreamCreate(&blocking), cudaSuccess);
  auto data = device_vector(std::vector<int>{0});
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  Gate gate;
  ASSERT_EQ(cudaLaunchHostFunc(blocking, &Gate::wait, &gate), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(data.get(), 1, sizeof(int), blocking), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(data.get(), 2, sizeof(int), nullptr), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(data.get(), 3, 1, blocking), cudaSuccess);
  gate.open = true;
  ASSERT_EQ(cudaStreamSynchronize(blocking), cudaSuccess);
  EXPECT_EQ(download(data, 1)[0], 0x02020203);
  EXPECT_EQ(cudaStreamDestroy(blocking), cudaSuccess);
}

TEST_F(EmulatorTest, CountsWhatWasDone) {
  counters().reset();
  auto data = device_vector(std::vector<int>(25));
  launch(add_number<int>, {dim3(1), dim3(32)}, stream_, data.get(), int64_t{25}, 1);
  download(data, 25);
  EXPECT_EQ(counters().kernel_launches, 1);
  EXPECT_EQ(counters().bytes_to_device, 100);
  EXPECT_EQ(counters().bytes_to_host, 100);
  EXPECT_EQ(counters().device_allocations, 1);
  EXPECT_EQ(counters().stream_synchronisations, 1);
  EXPECT_EQ(counters().device_synchronisations, 0);
  data.reset();
  EXPECT_EQ(counters().device_synchronisations, 1) << "cudaFree waits";
}

TEST_F(EmulatorTest, DevicesThatAreNotThereAreRefused) {
  int count = 0;
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  EXPECT_EQ(cudaSetDevice(count), cudaErrorInvalidDevice);
  EXPECT_STREQ(cudaGetErrorName(cudaErrorInvalidDevice), "cudaErrorInvalidDevice");
  cudaDeviceProp properties;
  ASSERT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
  EXPECT_EQ(properties.major, 9);
  EXPECT_EQ(properties.sharedMemPerBlockOptin, size_t{227} << 10);
}

}  // namespace
}  // namespace phalanx
