// Mistakes in the use of Hopper's instructions: each is reported, or shows in the result.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx_hopper.h"
#include "tests/cuda_emulator/emulator_fixture.h"

namespace phalanx {
namespace {

using emulator::EmulatorTest;
using testing::HasSubstr;

enum class Mistake {
  none,
  barrier_not_fenced,
  barrier_not_initialised,
  barrier_overwritten,
  bytes_not_announced,
  too_few_bytes_announced,
  one_arrival_too_many,
  tile_read_before_wait,
  no_wait_for_tile,
  copy_left_under_way,
  box_outside_of_memory,
  address_not_aligned,
  no_wgmma_fence,
  no_fence_after_wait,
  sums_read_before_wait,
  sums_written_before_wait,
  products_left_under_way,
  operand_overwritten,
  operand_copied_over,
  stores_not_fenced,
  stores_fenced,
  one_warp_of_four,
  descriptors_differ,
  registers_of_one_warp,
  too_many_registers,
};

constexpr uint32_t kTileBytes = 64 * 128;

/// The tile [64, 64] by its own transpose, first 16 of the depth; correct where nothing is wrong.
__global__ void faulty(const __grid_constant__ TensorMap map, Mistake mistake, float* out) {
  __shared__ uint64_t barrier;
  __shared__ uint64_t other;
  auto* shared = dynamic_shared<unsigned char>();
  const bool first = threadIdx.x == 0;
  const auto is = [mistake](Mistake one) { return mistake == one; };
  if (first && !is(Mistake::barrier_not_initialised)) {
    barrier_init(&barrier, 1);
    barrier_init(&other, 1);
    if (!is(Mistake::barrier_not_fenced)) barrier_init_fence();
  }
  if (is(Mistake::barrier_overwritten)) barrier = 0;
  __syncthreads();
  if (is(Mistake::registers_of_one_warp) && threadIdx.x < 32) lower_registers<24>();
  if (is(Mistake::too_many_registers)) raise_registers<256>();
  if (first) {
    const uint32_t bytes = is(Mistake::bytes_not_announced)       ? 0
                           : is(Mistake::too_few_bytes_announced) ? kTileBytes / 2
                                                                  : kTileBytes;
    barrier_arrive_expecting(&barrier, bytes);
    if (is(Mistake::one_arrival_too_many)) barrier_arrive(&barrier);
    tensor_load(shared + (is(Mistake::address_not_aligned) ? 16 : 0), map, 0, 0, 0, &barrier);
  }
  if (is(Mistake::tile_read_before_wait)) {
    __syncthreads();
    out[threadIdx.x] = static_cast<float>(reinterpret_cast<BFloat16*>(shared)[threadIdx.x]);
  }
  if (is(Mistake::copy_left_under_way)) return;
  if (!is(Mistake::no_wait_for_tile)) barrier_wait(&barrier, 0);
  if (is(Mistake::tile_read_before_wait)) return;
  if (is(Mistake::stores_not_fenced) || is(Mistake::stores_fenced)) {
    reinterpret_cast<uint4*>(shared)[threadIdx.x] = {};
    if (is(Mistake::stores_fenced)) async_proxy_fence();
    __syncthreads();
  }
  float d[32];
  const uint64_t tile = matrix_descriptor(shared, 1024, 0);
  const uint64_t next = matrix_descriptor(shared + 32, 1024, 0);
  if (is(Mistake::one_warp_of_four) && threadIdx.x >= 32) return;
  if (!is(Mistake::no_wgmma_fence)) wgmma_fence();
  wgmma<Major::k, Major::k>(d, tile, is(Mistake::descriptors_differ) && first ? next : tile, false);
  if (is(Mistake::sums_written_before_wait)) d[5] = 0;
  if (is(Mistake::sums_read_before_wait)) out[threadIdx.x] = d[0];
  wgmma_commit();
  if (is(Mistake::operand_overwritten)) {
    __syncthreads();
    shared[threadIdx.x] = 77;
    __syncthreads();
  }
  if (is(Mistake::operand_copied_over)) {
    __syncthreads();
    if (first) {
      barrier_arrive_expecting(&other, kTileBytes);
      tensor_load(shared, map, 0, 0, 0, &other);
    }
    __syncthreads();
  }
  if (is(Mistake::products_left_under_way)) return;
  wgmma_wait<0>();
  if (is(Mistake::no_fence_after_wait)) {
    for (float& sum : d) sum *= 2;
    wgmma<Major::k, Major::k>(d, tile, tile, true);
    wgmma_commit();
    wgmma_wait<0>();
  }
  if (!is(Mistake::sums_read_before_wait)) out[threadIdx.x] = d[0];
}

class HopperMisuseTest : public EmulatorTest {
 protected:
  void run(Mistake mistake) {
    tile_ = device_vector(std::vector<BFloat16>(64 * 64, BFloat16(1.0F)));
    out_ = device_vector(std::vector<float>(3 * kWarpgroup, -1.0F));
    // Twice as many rows as there are: the map is valid, the box's lower half is not memory.
    const int64_t rows = mistake == Mistake::box_outside_of_memory ? 128 : 64;
    const auto map =
        make_tensor_map(tile_.get() + (rows == 128 ? 64 * 32 : 0), {64, rows, 1}, {64, 64, 1});
    const int threads = mistake == Mistake::too_many_registers ? 3 * kWarpgroup : kWarpgroup;
    launch(faulty, {dim3(1), dim3(static_cast<unsigned>(threads)), 64 << 10}, stream_, map, mistake,
           out_.get());
  }
  std::vector<float> result(Mistake mistake) {
    run(mistake);
    return download(out_, kWarpgroup);
  }
  std::string error(Mistake mistake) {
    run(mistake);
    return error_of_device();
  }
  emulator::DeviceVector<BFloat16> tile_{nullptr, &cudaFree};
  emulator::DeviceVector<float> out_{nullptr, &cudaFree};
};

TEST_F(HopperMisuseTest, WithoutMistakeTheResultIsRight) {
  EXPECT_THAT(result(Mistake::none), testing::Each(16.0F));
  EXPECT_THAT(result(Mistake::stores_fenced), testing::Contains(0.0F));
}

TEST_F(HopperMisuseTest, Barriers) {
  EXPECT_THAT(error(Mistake::barrier_not_fenced), HasSubstr("has not fenced since"));
  EXPECT_THAT(error(Mistake::barrier_not_initialised), HasSubstr("not initialised"));
  EXPECT_THAT(error(Mistake::barrier_overwritten), HasSubstr("overwritten"));
  EXPECT_THAT(error(Mistake::one_arrival_too_many), HasSubstr("more than the 1 arrivals"));
  EXPECT_THAT(error(Mistake::too_few_bytes_announced), HasSubstr("barrier_wait at"));
}

TEST_F(HopperMisuseTest, BytesThatWereNotAnnounced) {
  // The phase completes without them; nobody waits for the copy.
  EXPECT_THAT(error(Mistake::bytes_not_announced), HasSubstr("1 copies by TMA"));
}

TEST_F(HopperMisuseTest, Copies) {
  EXPECT_THAT(result(Mistake::tile_read_before_wait), testing::Each(testing::IsNan()));
  EXPECT_THAT(error(Mistake::copy_left_under_way), HasSubstr("1 copies by TMA"));
  EXPECT_THAT(error(Mistake::box_outside_of_memory), HasSubstr("not inside of one allocation"));
  EXPECT_THAT(error(Mistake::address_not_aligned), HasSubstr("not aligned to 128"));
}

TEST_F(HopperMisuseTest, RegistersOfProducts) {
  EXPECT_THAT(error(Mistake::no_wgmma_fence), HasSubstr("wgmma_fence is missing"));
  EXPECT_THAT(error(Mistake::no_fence_after_wait), HasSubstr("wgmma_fence is missing"));
  EXPECT_THAT(result(Mistake::sums_read_before_wait), testing::Each(testing::IsNan()));
  EXPECT_THAT(error(Mistake::sums_written_before_wait), HasSubstr("accumulators were written"));
  EXPECT_THAT(error(Mistake::products_left_under_way), HasSubstr("wgmma_wait is missing"));
}

TEST_F(HopperMisuseTest, OperandsOfProducts) {
  EXPECT_THAT(error(Mistake::operand_overwritten), HasSubstr("changed before"));
  EXPECT_THAT(error(Mistake::operand_copied_over), HasSubstr("changed before"));
  EXPECT_THAT(error(Mistake::stores_not_fenced), HasSubstr("without async_proxy_fence"));
}

TEST_F(HopperMisuseTest, WaitingForNobody) {
  EXPECT_THAT(error(Mistake::one_warp_of_four), HasSubstr("[0-31] wait in wgmma_wait"));
  EXPECT_THAT(error(Mistake::descriptors_differ), HasSubstr("disagree on descriptors"));
}

TEST_F(HopperMisuseTest, Registers) {
  EXPECT_THAT(error(Mistake::registers_of_one_warp), HasSubstr("not executed alike"));
  EXPECT_THAT(error(Mistake::too_many_registers), HasSubstr("98304 registers"));
}

}  // namespace
}  // namespace phalanx
