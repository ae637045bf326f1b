// Capture of streams and replay of graphs, and what is not allowed in between.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/launch.h"
#include "tests/cuda_emulator/counters.h"
#include "tests/cuda_emulator/emulator_fixture.h"

namespace phalanx {
namespace {

/// value = value * factor + number, so that order shows.
__global__ void transform(int* value, int factor, int number) {
  *value = *value * factor + number;
}
__global__ void sum_to(int* sum, const int* a, const int* b) {
  *sum = *a * 1000 + *b;
}

class GraphTest : public emulator::EmulatorTest {
 protected:
  void SetUp() override {
    EmulatorTest::SetUp();
    ASSERT_EQ(cudaStreamCreateWithFlags(&side_, cudaStreamNonBlocking), cudaSuccess);
    for (auto& event : events_)
      ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  }
  void TearDown() override {
    for (auto& event : events_) EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(side_), cudaSuccess);
    EmulatorTest::TearDown();
  }
  void begin(cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal) {
    ASSERT_EQ(cudaStreamBeginCapture(stream_, mode), cudaSuccess);
  }
  cudaError_t end() {
    const cudaError_t error = cudaStreamEndCapture(stream_, &graph_);
    if (graph_ != nullptr) static_cast<void>(cudaGraphDestroy(graph_));
    return error;
  }
  void step(cudaStream_t stream, int* value, int factor, int number) {
    launch(transform, {dim3(1), dim3(1)}, stream, value, factor, number);
  }

  cudaStream_t side_ = nullptr;
  cudaEvent_t events_[2] = {};
  cudaGraph_t graph_ = nullptr;
};

TEST_F(GraphTest, ForkJoinReplaysInEveryOrder) {
  auto a = device_vector(std::vector<int>{1});
  auto b = device_vector(std::vector<int>{1});
  auto sum = device_vector(std::vector<int>{0});
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  begin();
  step(stream_, a.get(), 2, 1);
  ASSERT_EQ(cudaEventRecord(events_[0], stream_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(side_, events_[0]), cudaSuccess);
  step(side_, b.get(), 3, 1);
  step(side_, b.get(), 5, 2);
  step(stream_, a.get(), 7, 3);
  ASSERT_EQ(cudaEventRecord(events_[1], side_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(stream_, events_[1]), cudaSuccess);
  launch(sum_to, {dim3(1), dim3(1)}, stream_, sum.get(), a.get(), b.get());
  cudaStreamCaptureStatus status;
  EXPECT_EQ(cudaStreamIsCapturing(side_, &status), cudaSuccess);
  EXPECT_EQ(status, cudaStreamCaptureStatusActive) << "the event carried the capture over";
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  EXPECT_EQ(cudaStreamIsCapturing(side_, &status), cudaSuccess);
  EXPECT_EQ(status, cudaStreamCaptureStatusNone);
  EXPECT_EQ(download(a, 1)[0], 1) << "captured, not run";
  size_t nodes = 0;
  EXPECT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
  EXPECT_EQ(nodes, 5U);
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  int expected_a = 1;
  int expected_b = 1;
  for (const char* order : {"forward", "backward", "random:1", "random:2", "random:3"}) {
    emulator::set_order(order);
    ASSERT_EQ(cudaGraphLaunch(executable, stream_), cudaSuccess);
    expected_a = (expected_a * 2 + 1) * 7 + 3;
    expected_b = (expected_b * 3 + 1) * 5 + 2;
    EXPECT_EQ(download(sum, 1)[0], expected_a * 1000 + expected_b) << order;
  }
  EXPECT_EQ(cudaGraphExecDestroy(executable), cudaSuccess);
}

TEST_F(GraphTest, AMissingDependencyShowsInAnotherOrder) {
  auto a = device_vector(std::vector<int>{0});
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  begin();
  ASSERT_EQ(cudaEventRecord(events_[0], stream_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(side_, events_[0]), cudaSuccess);
  step(stream_, a.get(), 2, 1);
  step(side_, a.get(), 3, 1);  // should have waited for the one before
  ASSERT_EQ(cudaEventRecord(events_[1], side_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(stream_, events_[1]), cudaSuccess);
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(executable, stream_), cudaSuccess);
  EXPECT_EQ(download(a, 1)[0], 4);
  emulator::set_order("backward");
  ASSERT_EQ(cudaMemsetAsync(a.get(), 0, sizeof(int), stream_), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(executable, stream_), cudaSuccess);
  EXPECT_EQ(download(a, 1)[0], 3);
  EXPECT_EQ(cudaGraphExecDestroy(executable), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
}

TEST_F(GraphTest, AForkMustJoin) {
  auto a = device_vector(std::vector<int>{0});
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  begin();
  ASSERT_EQ(cudaEventRecord(events_[0], stream_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(side_, events_[0]), cudaSuccess);
  step(side_, a.get(), 3, 1);
  EXPECT_EQ(end(), cudaErrorStreamCaptureUnjoined);
  EXPECT_EQ(cudaStreamSynchronize(side_), cudaSuccess) << "no longer capturing";
}

TEST_F(GraphTest, WhatWaitsOrAllocatesIsRefused) {
  auto a = device_vector(std::vector<int>{0});
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  void* memory = nullptr;
  int host = 0;
  const std::vector<std::function<cudaError_t()>> calls = {
      [&] { return cudaStreamSynchronize(stream_); },
      [&] { return cudaStreamQuery(stream_); },
      [&] { return cudaDeviceSynchronize(); },
      [&] { return cudaMalloc(&memory, 4); },
      [&] { return cudaMallocHost(&memory, 4); },
      [&] { return cudaFree(a.get()); },
      [&] { return cudaMemcpy(&host, a.get(), 4, cudaMemcpyDeviceToHost); },
      [&] { return cudaEventQuery(events_[1]); },
      [&] { return cudaMemcpyAsync(&host, a.get(), 4, cudaMemcpyDeviceToHost, stream_); }};
  for (size_t i = 0; i < calls.size(); ++i) {
    begin();
    EXPECT_EQ(calls[i](), cudaErrorStreamCaptureUnsupported) << i;
    EXPECT_EQ(end(), cudaErrorStreamCaptureInvalidated) << i;
  }
}

TEST_F(GraphTest, EventsDoNotCrossTheBorderOfACapture) {
  ASSERT_EQ(cudaEventRecord(events_[0], side_), cudaSuccess);
  begin();
  EXPECT_EQ(cudaStreamWaitEvent(stream_, events_[0]), cudaErrorStreamCaptureIsolation);
  EXPECT_EQ(end(), cudaErrorStreamCaptureInvalidated);
  begin();
  ASSERT_EQ(cudaEventRecord(events_[1], stream_), cudaSuccess);
  EXPECT_EQ(cudaEventSynchronize(events_[1]), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(end(), cudaErrorStreamCaptureInvalidated);
  begin(cudaStreamCaptureModeRelaxed);
  ASSERT_EQ(cudaEventRecord(events_[1], stream_), cudaSuccess);
  EXPECT_EQ(cudaEventSynchronize(events_[1]), cudaErrorCapturedEvent);
  EXPECT_EQ(end(), cudaErrorStreamCaptureInvalidated);
}

TEST_F(GraphTest, RelaxedCaptureAllowsMemory) {
  begin(cudaStreamCaptureModeRelaxed);
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, 4), cudaSuccess);
  EXPECT_EQ(end(), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
}

}  // namespace
}  // namespace phalanx
