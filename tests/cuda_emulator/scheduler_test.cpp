// What asynchronous hardware is emulated with: conditions, work that is put off, collective
// operations of several sizes; and that the poison reaches `__shared__` variables.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "kernels/cuda/launch.h"
#include "tests/cuda_emulator/emulator_fixture.h"

namespace phalanx {
namespace {

using emulator::EmulatorTest;
using emulator::running_block;
using emulator::Site;
using testing::AllOf;
using testing::HasSubstr;

Site here(const char* operation, PHALANX_EMULATOR_WHERE) {
  return {operation, where};
}

/// Thread 0 starts work that the hardware does; all wait until it has happened.
__global__ void wait_for_hardware(int* out) {
  const Site site = here("wait_for_hardware");
  __shared__ int cell;
  if (threadIdx.x == 0) {
    cell = 1;
    running_block(site).later([target = &cell] { *target = 2; });
  }
  __syncthreads();
  const int before = cell;
  running_block(site).wait_until(site, [] { return cell == 2; });
  out[threadIdx.x] = before;
  out[64 + threadIdx.x] = cell;
}

TEST_F(EmulatorTest, WorkOfTheHardwareIsPutOffUntilNobodyCanGoOn) {
  auto out = device_vector(std::vector<int>(128));
  launch(wait_for_hardware, {dim3(1), dim3(64)}, stream_, out.get());
  const auto values = download(out, 128);
  for (size_t i = 0; i < 128; ++i) EXPECT_EQ(values[i], i < 64 ? 1 : 2);
  for (const char* order : {"backward", "random:1", "random:2"}) {
    emulator::set_order(order);
    launch(wait_for_hardware, {dim3(1), dim3(64)}, stream_, out.get());
    EXPECT_EQ(download(out, 128)[64], 2);
  }
}

__global__ void wait_for_nothing() {
  const Site site = here("wait_for_nothing");
  if (threadIdx.x == 5) running_block(site).wait_until(site, [] { return false; });
  if (threadIdx.x >= 8) __syncwarp(0xffffff00U);
}

TEST_F(EmulatorTest, AWaitThatCannotEndSaysWhoWaitsWhere) {
  launch(wait_for_nothing, {dim3(1), dim3(31)}, stream_);
  EXPECT_THAT(error_of_device(),
              AllOf(HasSubstr("no thread can go on"), HasSubstr("[5] wait in wait_for_nothing"),
                    HasSubstr("[8-30] wait in __syncwarp"), HasSubstr("[0-4, 6-7] have ended")));
}

/// Sums over the 128 threads of each warpgroup.
__global__ void warpgroup_sums(int* out) {
  struct Operand {
    int value, sum;
  } mine{static_cast<int>(threadIdx.x), 0};
  emulator::meet_warpgroup(here("warpgroup_sums"), mine, [](std::span<Operand* const> threads) {
    int sum = 0;
    for (const Operand* thread : threads) sum += thread->value;
    for (Operand* thread : threads) thread->sum = sum;
  });
  out[threadIdx.x] = mine.sum;
}

TEST_F(EmulatorTest, WarpgroupsMeet) {
  for (const char* order : {"forward", "random:9"}) {
    emulator::set_order(order);
    auto out = device_vector(std::vector<int>(256));
    launch(warpgroup_sums, {dim3(1), dim3(256)}, stream_, out.get());
    const auto values = download(out, 256);
    for (size_t i = 0; i < 256; ++i) EXPECT_EQ(values[i], i < 128 ? 8128 : 24512);
  }
}

/// Writes only where `cell` is asked to; reads all of it.
__global__ void read_static_shared(unsigned* out, unsigned written) {
  __shared__ unsigned cells[8];
  cells[written] = 7;
  __syncthreads();
  out[threadIdx.x + 8 * blockIdx.x] = cells[threadIdx.x];
}

TEST_F(EmulatorTest, SharedVariablesArePoisonedBeforeEachBlock) {
  auto out = device_vector(std::vector<unsigned>(24));
  launch(read_static_shared, {dim3(3), dim3(8)}, stream_, out.get(), 2U);
  const auto values = download(out, 24);
  for (size_t i = 0; i < 24; ++i) EXPECT_EQ(values[i], i % 8 == 2 ? 7U : 0xffffffffU) << i;
}

__global__ void throw_something() {
  fail("thrown by thread ", static_cast<int>(threadIdx.x));
}
__global__ void go_too_deep(int* out) {
  volatile char frame[1 << 20];
  frame[threadIdx.x] = 1;
  out[0] = frame[threadIdx.x];
}

TEST_F(EmulatorTest, ExceptionsOfDeviceCodeBreakTheKernel) {
  launch(throw_something, {dim3(1), dim3(4)}, stream_);
  EXPECT_THAT(error_of_device(), AllOf(HasSubstr("exception"), HasSubstr("thrown by thread 0")));
}

TEST_F(EmulatorTest, AStackThatOverflowsEndsTheProgram) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  auto out = device_vector(std::vector<int>(1));
  EXPECT_DEATH(
      {
        launch(go_too_deep, {dim3(1), dim3(1)}, stream_, out.get());
        static_cast<void>(cudaStreamSynchronize(stream_));
      },
      "");
}

/// Sums of a block's numbers, row by row, through shared memory. Without the second barrier a warp
/// that runs ahead overwrites what slower ones have still to read.
__global__ void sum_rows(float* sums, int rows, bool with_second_barrier) {
  __shared__ float scratch[4];
  for (int row = 0; row < rows; ++row) {
    const auto warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) scratch[warp] = static_cast<float>(row + 1);
    __syncthreads();
    const float sum = scratch[0] + scratch[1] + scratch[2] + scratch[3];
    if (with_second_barrier) __syncthreads();
    if (threadIdx.x % 32 == 0) sums[row * 4 + static_cast<int>(warp)] = sum;
  }
}

TEST_F(EmulatorTest, AWarpThatRunsAheadShowsAMissingBarrier) {
  emulator::set_order("warps");
  constexpr int kRows = 5;
  for (const bool with_second_barrier : {true, false}) {
    float* sums = nullptr;
    ASSERT_EQ(cudaMalloc(&sums, kRows * 4 * sizeof(float)), cudaSuccess);
    cudaLaunchConfig_t config{};
    config.gridDim = 1;
    config.blockDim = 128;
    ASSERT_EQ(cudaLaunchKernelEx(&config, sum_rows, sums, kRows, with_second_barrier), cudaSuccess);
    std::vector<float> host(kRows * 4);
    ASSERT_EQ(cudaMemcpy(host.data(), sums, host.size() * sizeof(float), cudaMemcpyDeviceToHost),
              cudaSuccess);
    int wrong = 0;
    for (size_t i = 0; i < host.size(); ++i)
      wrong += host[i] == 4.0F * static_cast<float>(i / 4 + 1) ? 0 : 1;
    EXPECT_EQ(wrong > 0, !with_second_barrier);
    EXPECT_EQ(cudaFree(sums), cudaSuccess);
  }
}

TEST_F(EmulatorTest, RandomOrdersRepeatWithTheirSeed) {
  const auto draw = [] {
    std::vector<uint64_t> numbers;
    for (int run = 0; run < 3; ++run) {
      auto order = emulator::RunOrder::current();
      for (int i = 0; i < 4; ++i) numbers.push_back(order.random(1000));
    }
    return numbers;
  };
  emulator::set_order("random:4");
  const auto first = draw();
  emulator::set_order("random:4");
  EXPECT_EQ(first, draw());
  emulator::set_order("random:5");
  EXPECT_NE(first, draw());
  EXPECT_THROW(emulator::set_order("sideways"), std::invalid_argument);
}

}  // namespace
}  // namespace phalanx
