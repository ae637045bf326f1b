// The CUDA backend as a device, on the emulated one: memory, copies both ways, recorded ops.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "tests/cuda_emulator/counters.h"

namespace phalanx {
namespace {

using emulator::counters;

std::vector<float> numbers(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), 1.0F);
  return values;
}

/// A tensor with its memory.
struct Held {
  Held(CudaBackend& backend, const Shape& shape, DType dtype = DType::f32)
      : block(backend.allocate(shape.numel() * dtype_bytes(dtype))),
        tensor{block.get(), shape, dtype, Device::cuda} {}
  std::shared_ptr<void> block;
  Tensor tensor;
};

std::vector<float> downloaded(CudaBackend& backend, const Tensor& x) {
  std::vector<float> values(static_cast<size_t>(x.numel()));
  backend.download(values.data(), x);
  return values;
}

TEST(DeviceBlock, GapsAreUsedAgainAndJoin) {
  DeviceBlock block(4 * 256);
  void* first = block.take(1);
  void* second = block.take(256);
  void* third = block.take(300);
  EXPECT_EQ(block.take(1), nullptr);
  block.give_back(first);
  EXPECT_EQ(block.take(257), nullptr);
  block.give_back(second);
  void* joined = block.take(512);
  EXPECT_EQ(joined, first);
  block.give_back(third);
  block.give_back(joined);
  EXPECT_EQ(block.take(4 * 256), first);
}

TEST(CudaBackend, ReservedMemoryIsTakenOnceAndGivenBack) {
  CudaBackend backend(0);
  const int64_t before = counters().device_allocations;
  backend.reserve(workspace_bytes(Device::cuda) + (1 << 20));
  {
    const Held a(backend, {1000});
    const Held b(backend, {2000});
    EXPECT_EQ(downloaded(backend, b.tensor), std::vector<float>(2000, 0.0F));
  }
  const Held all(backend, {1 << 18});
  EXPECT_EQ(counters().device_allocations, before + 1);
  const Held beyond(backend, {1});
  EXPECT_EQ(counters().device_allocations, before + 2);
}

TEST(CudaBackend, CopiesOfAnySizeArrive) {
  CudaBackend backend(0);
  const int64_t slot = staging_bytes(Device::cuda) / 8 / static_cast<int64_t>(sizeof(float));
  for (const int64_t count : {int64_t{1}, slot, slot + 1, 11 * slot + 3}) {
    const Held x(backend, {count});
    std::vector<float> values = numbers(count);
    const std::vector<float> kept = values;
    backend.upload(x.tensor, values.data());
    values.assign(values.size(), -1.0F);  // it may be reused at once
    EXPECT_EQ(downloaded(backend, x.tensor), kept) << count;
  }
}

TEST(CudaBackend, ColumnsGoToTheirPlace) {
  CudaBackend backend(0);
  const Held x(backend, {5, 7});
  backend.upload_columns(x.tensor, 2, 3, numbers(15).data());
  const std::vector<float> found = downloaded(backend, x.tensor);
  for (int64_t row = 0; row < 5; ++row)
    for (int64_t column = 0; column < 7; ++column) {
      const bool inside = 2 <= column && column < 5;
      EXPECT_EQ(found[static_cast<size_t>(row * 7 + column)],
                inside ? static_cast<float>(row * 3 + column - 2 + 1) : 0.0F);
    }
}

TEST(CudaBackend, RowsLongerThanASlotGoToTheirPlaceToo) {
  CudaBackend backend(0);
  const int64_t width = staging_bytes(Device::cuda) / 8 / static_cast<int64_t>(sizeof(float)) + 5;
  const Held x(backend, {2, width + 1});
  const std::vector<float> values = numbers(2 * width);
  backend.upload_columns(x.tensor, 1, width, values.data());
  const std::vector<float> found = downloaded(backend, x.tensor);
  EXPECT_EQ(found[0], 0.0F);
  EXPECT_EQ(found[1], values[0]);
  EXPECT_EQ(found[static_cast<size_t>(width + 1)], 0.0F);
  EXPECT_EQ(found.back(), values.back());
}

TEST(CudaBackend, UploadsDoNotWaitAndOpsSeeThem) {
  CudaBackend backend(0);
  const Held x(backend, {64});
  const Held y(backend, {64});
  const std::vector<float> values = numbers(64);
  backend.synchronize();
  backend.upload(x.tensor, values.data());  // the first one makes the staging memory
  counters().reset();
  backend.upload(x.tensor, values.data());
  backend.upload_early(y.tensor, values.data());
  backend.add(x.tensor, x.tensor, y.tensor);
  EXPECT_EQ(counters().stream_synchronisations + counters().event_synchronisations, 0);
  EXPECT_EQ(downloaded(backend, x.tensor)[63], 128.0F);
  EXPECT_EQ(counters().stream_synchronisations + counters().event_synchronisations, 1);
}

TEST(CudaBackend, RecordedOpsRunWhenReplayed) {
  CudaBackend backend(0);
  const Held x(backend, {8});
  const Held one(backend, {8});
  backend.fill(one.tensor, 1.0);
  const auto recorded = backend.record([&] {
    backend.add(x.tensor, x.tensor, one.tensor);
    backend.scale(x.tensor, 2.0);
  });
  EXPECT_EQ(downloaded(backend, x.tensor)[0], 0.0F);
  recorded->replay();
  EXPECT_EQ(downloaded(backend, x.tensor)[0], 2.0F);
  recorded->replay();
  EXPECT_EQ(downloaded(backend, x.tensor)[7], 6.0F);
}

TEST(CudaBackend, ARecordingThatFailsLeavesTheStreamUsable) {
  CudaBackend backend(0);
  const Held x(backend, {8});
  EXPECT_THROW(static_cast<void>(backend.record([] { fail("no"); })), Error);
  backend.fill(x.tensor, 3.0);
  EXPECT_EQ(downloaded(backend, x.tensor)[0], 3.0F);
}

}  // namespace
}  // namespace phalanx
