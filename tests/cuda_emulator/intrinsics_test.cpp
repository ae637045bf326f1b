// Every intrinsic against its definition in the programming guide and the PTX ISA.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <numeric>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"
#include "tests/cuda_emulator/emulator_fixture.h"

namespace phalanx {
namespace {

using emulator::EmulatorTest;
using testing::HasSubstr;

template <class T>
__global__ void shuffles(T* out, int width) {
  const T mine = static_cast<T>(threadIdx.x) * 10 + 1;
  const unsigned lane = threadIdx.x;
  out[lane] = __shfl_sync(kAllLanes, mine, 37, width);
  out[32 + lane] = __shfl_xor_sync(kAllLanes, mine, 5, width);
  out[64 + lane] = __shfl_down_sync(kAllLanes, mine, 3, width);
  out[96 + lane] = __shfl_up_sync(kAllLanes, mine, 3, width);
}

/// The lane that each of the four shuffles above reads, by the guide's words.
std::array<int, 4> sources(int lane, int width) {
  const int start = lane / width * width;
  const int within = lane % width;
  return {start + 37 % width, within / width == (within ^ 5) / width ? start + (within ^ 5) : lane,
          within + 3 < width ? lane + 3 : lane, within >= 3 ? lane - 3 : lane};
}

template <class T>
class Shuffle : public EmulatorTest {};
using ShuffledTypes = testing::Types<int, unsigned, float, double, int64_t, unsigned long long>;
TYPED_TEST_SUITE(Shuffle, ShuffledTypes);

TYPED_TEST(Shuffle, MovesValuesBetweenLanes) {
  for (const int width : {32, 16, 8}) {
    auto out = this->device_vector(std::vector<TypeParam>(128));
    launch(shuffles<TypeParam>, {dim3(1), dim3(32)}, this->stream_, out.get(), width);
    const auto values = this->download(out, 128);
    for (int lane = 0; lane < 32; ++lane)
      for (int kind = 0; kind < 4; ++kind)
        EXPECT_EQ(values[static_cast<size_t>(32 * kind + lane)],
                  static_cast<TypeParam>(sources(lane, width)[static_cast<size_t>(kind)] * 10 + 1))
            << "lane " << lane << " kind " << kind << " width " << width;
  }
}

__global__ void shuffle_of_half(int* out) {
  const unsigned half = threadIdx.x < 16 ? 0x0000ffffU : 0xffff0000U;
  out[threadIdx.x] = __shfl_xor_sync(half, static_cast<int>(threadIdx.x), 15);
}
__global__ void read_outside_of_mask(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffU, 1, 16);
}

TEST_F(EmulatorTest, HalvesOfAWarpShuffleAlone) {
  auto out = device_vector(std::vector<int>(32));
  launch(shuffle_of_half, {dim3(1), dim3(32)}, stream_, out.get());
  const auto values = download(out, 32);
  for (int lane = 0; lane < 32; ++lane) EXPECT_EQ(values[static_cast<size_t>(lane)], lane ^ 15);
  launch(read_outside_of_mask, {dim3(1), dim3(32)}, stream_, out.get());
  EXPECT_THAT(error_of_device(), HasSubstr("reads a lane that the mask does not name"));
}

__global__ void votes(unsigned* out) {
  const unsigned lane = threadIdx.x;
  const bool odd = lane % 2 == 1;
  const unsigned ballot = __ballot_sync(kAllLanes, odd);
  const int any = __any_sync(kAllLanes, lane == 7);
  const int none = __any_sync(kAllLanes, 0);
  const int all = __all_sync(kAllLanes, 1);
  const int not_all = __all_sync(kAllLanes, lane != 9);
  out[lane] = ballot;
  out[32 + lane] = static_cast<unsigned>(any + 2 * none + 4 * all + 8 * not_all);
}

TEST_F(EmulatorTest, Votes) {
  auto out = device_vector(std::vector<unsigned>(64));
  launch(votes, {dim3(1), dim3(32)}, stream_, out.get());
  const auto values = download(out, 64);
  for (size_t lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(values[lane], 0xaaaaaaaaU);
    EXPECT_EQ(values[32 + lane], 5U);
  }
}

template <class T>
__global__ void add_up(T* sum, T* most, int* last) {
  atomicAdd(sum, static_cast<T>(threadIdx.x + blockIdx.x));
  if constexpr (std::is_integral_v<T>) {
    atomicMax(most, static_cast<T>(threadIdx.x));
    atomicMin(most + 1, static_cast<T>(threadIdx.x));
    atomicCAS(most + 2, static_cast<T>(threadIdx.x), static_cast<T>(threadIdx.x + 1));
  }
  if (atomicAdd(last, 1) == 64 * 3 - 1) atomicExch(last, -5);
}

template <class T>
class Atomics : public EmulatorTest {};
using AtomicTypes = testing::Types<int, unsigned, float, double, unsigned long long>;
TYPED_TEST_SUITE(Atomics, AtomicTypes);

TYPED_TEST(Atomics, OfManyThreads) {
  auto sum = this->device_vector(std::vector<TypeParam>{0});
  auto most = this->device_vector(std::vector<TypeParam>{0, 99, 0});
  auto last = this->device_vector(std::vector<int>{0});
  launch(add_up<TypeParam>, {dim3(3), dim3(64)}, this->stream_, sum.get(), most.get(), last.get());
  EXPECT_EQ(this->download(sum, 1)[0], TypeParam{3 * 63 * 64 / 2 + 3 * 64});
  EXPECT_EQ(this->download(last, 1)[0], -5);
  if (std::is_integral_v<TypeParam>) {
    EXPECT_EQ(this->download(most, 3), (std::vector<TypeParam>{63, 0, 64}));
  }
}

TEST_F(EmulatorTest, BitsAndNumbers) {
  EXPECT_EQ(__popc(0xf0f0U), 8);
  EXPECT_EQ(__ffs(0x10), 5);
  EXPECT_EQ(__ffs(0), 0);
  EXPECT_EQ(__clz(1), 31);
  EXPECT_EQ(__clz(0), 32);
  EXPECT_EQ(__brev(1U), 0x80000000U);
  EXPECT_EQ(__umulhi(0x80000000U, 6U), 3U);
  EXPECT_EQ(__umul64hi(uint64_t{1} << 63, 6), 3U);
  EXPECT_EQ(__uint_as_float(__float_as_uint(1.5F)), 1.5F);
  EXPECT_EQ(::min(3, 4), 3);
  EXPECT_EQ(::max(3U, 4U), 4U);
  EXPECT_EQ(::max(NAN, 4.0F), 4.0F);
  EXPECT_EQ(rsqrtf(4.0F), 0.5F);
  EXPECT_EQ(exp2_approximate(-INFINITY), 0.0F);
  EXPECT_EQ(exp2_approximate(-140.0F), 0.0F) << "denormal results are flushed";
  EXPECT_EQ(unpack_bf16(pack_bf16(1.0F, -2.5F)).x, 1.0F);
  EXPECT_EQ(unpack_bf16(pack_bf16(1.0F, -2.5F)).y, -2.5F);
  EXPECT_EQ(pack_bf16(0x1.01p0F, 0.0F) & 0xffffU, 0x3f80U) << "a tie goes to the even neighbour";
  EXPECT_EQ(pack_bf16(0x1.03p0F, 0.0F) & 0xffffU, 0x3f82U);
}

// --- fragments ---

/// Small integers, all products and sums exact; unequal in every row and column.
float a_value(int row, int k) {
  return static_cast<float>((row * 7 + k * 3) % 23 - 11);
}
float b_value(int k, int column) {
  return static_cast<float>((k * 5 + column * 11) % 19 - 9);
}

/// A lane's fragments, written out from the figures of the PTX ISA for mma.m16n8k16.
__global__ void product_of_warp(float* d_out) {
  const int group = static_cast<int>(threadIdx.x) >> 2;
  const int in_group = static_cast<int>(threadIdx.x) % 4;
  uint32_t a[4];
  uint32_t b[2];
  const int column = in_group * 2;
  a[0] = pack_bf16(a_value(group, column), a_value(group, column + 1));
  a[1] = pack_bf16(a_value(group + 8, column), a_value(group + 8, column + 1));
  a[2] = pack_bf16(a_value(group, column + 8), a_value(group, column + 9));
  a[3] = pack_bf16(a_value(group + 8, column + 8), a_value(group + 8, column + 9));
  b[0] = pack_bf16(b_value(column, group), b_value(column + 1, group));
  b[1] = pack_bf16(b_value(column + 8, group), b_value(column + 9, group));
  float d[4] = {1000, 1000, 1000, 1000};
  mma_m16n8k16(d, a, b);
  for (int i = 0; i < 4; ++i) d_out[(group + (i < 2 ? 0 : 8)) * 8 + column + i % 2] = d[i];
}

TEST_F(EmulatorTest, MatrixProductOfAWarp) {
  auto d = device_vector(std::vector<float>(16 * 8));
  launch(product_of_warp, {dim3(1), dim3(32)}, stream_, d.get());
  const auto values = download(d, 16 * 8);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float expected = 1000;
      for (int k = 0; k < 16; ++k) expected += a_value(row, k) * b_value(k, column);
      EXPECT_EQ(values[static_cast<size_t>(row * 8 + column)], expected) << row << ' ' << column;
    }
}

__global__ void load_and_store(uint32_t* out, bool transposed) {
  auto* tile = dynamic_shared<uint16_t>();  // 32 rows of 8, row r of matrix r / 8
  for (unsigned i = threadIdx.x; i < 256; i += 32) tile[i] = static_cast<uint16_t>(i);
  __syncwarp();
  uint32_t r[4];
  if (transposed) {
    load_matrices_transposed(r, tile + threadIdx.x * 8);
  } else {
    load_matrices(r, tile + threadIdx.x * 8);
  }
  for (unsigned i = 0; i < 4; ++i) out[i * 32 + threadIdx.x] = r[i];
}

TEST_F(EmulatorTest, MatricesOutOfSharedMemory) {
  for (const bool transposed : {false, true}) {
    auto out = device_vector(std::vector<uint32_t>(128));
    launch(load_and_store, {dim3(1), dim3(32), 512}, stream_, out.get(), transposed);
    const auto values = download(out, 128);
    for (size_t matrix = 0; matrix < 4; ++matrix)
      for (size_t lane = 0; lane < 32; ++lane)
        for (size_t half = 0; half < 2; ++half) {
          const size_t row = transposed ? lane % 4 * 2 + half : lane / 4;
          const size_t column = transposed ? lane / 4 : lane % 4 * 2 + half;
          EXPECT_EQ(values[matrix * 32 + lane] >> (16 * half) & 0xffffU,
                    matrix * 64 + row * 8 + column);
        }
  }
}

__global__ void load_unaligned(uint32_t* out) {
  uint32_t r[4];
  load_matrices(r, dynamic_shared<char>() + 8);
  out[0] = r[0];
}
__global__ void load_from_global(uint32_t* out) {
  uint32_t r[4];
  load_matrices(r, out);
  out[0] = r[0];
}

TEST_F(EmulatorTest, MatricesAtWrongAddressesAreErrors) {
  auto out = device_vector(std::vector<uint32_t>(128));
  launch(load_unaligned, {dim3(1), dim3(32), 512}, stream_, out.get());
  EXPECT_THAT(error_of_device(), HasSubstr("not aligned to 16"));
  launch(load_from_global, {dim3(1), dim3(32), 512}, stream_, out.get());
  EXPECT_THAT(error_of_device(), HasSubstr("shared memory"));
}

// --- asynchronous copies ---

/// Copies group by group; `waited` says for how many of the two groups the thread waits.
template <int pending>
__global__ void copy_two_groups(float* out, const float* in) {
  __shared__ __align__(16) float tile[32 * 8];
  float* mine = tile + threadIdx.x * 8;
  for (int i = 0; i < 8; ++i) mine[i] = 5;
  copy_async_16(mine, in + threadIdx.x * 8);
  copy_async_commit();
  copy_async_16(mine + 4, in + threadIdx.x * 8 + 4, threadIdx.x % 2 == 0);
  copy_async_commit();
  copy_async_wait<pending>();
  for (int i = 0; i < 8; ++i) out[threadIdx.x * 8 + i] = mine[i];
}

TEST_F(EmulatorTest, AsynchronousCopiesArriveAtTheWaitAndNotBefore) {
  std::vector<float> numbers(256);
  std::iota(numbers.begin(), numbers.end(), 1.0F);
  auto in = device_vector(numbers);
  auto out = device_vector(std::vector<float>(256));
  launch(copy_two_groups<0>, {dim3(1), dim3(32)}, stream_, out.get(), in.get());
  auto values = download(out, 256);
  for (size_t i = 0; i < 256; ++i)
    EXPECT_EQ(values[i], i % 8 >= 4 && i / 8 % 2 == 1 ? 0.0F : numbers[i]);
  launch(copy_two_groups<1>, {dim3(1), dim3(32)}, stream_, out.get(), in.get());
  values = download(out, 256);
  for (size_t i = 0; i < 256; ++i) EXPECT_EQ(std::isnan(values[i]), i % 8 >= 4) << i;
  launch(copy_two_groups<2>, {dim3(1), dim3(32)}, stream_, out.get(), in.get());
  EXPECT_TRUE(std::isnan(download(out, 256)[0]));
}

// --- barriers by number ---

__global__ void producers_and_consumers(int* out) {
  auto* cells = dynamic_shared<int>();
  const bool produces = threadIdx.x < 32;
  for (int round = 0; round < 3; ++round) {
    if (produces) {
      cells[threadIdx.x] = static_cast<int>(threadIdx.x) + 100 * round;
      named_barrier(1, 64);
      named_barrier(2, 64);
    } else {
      named_barrier(1, 64);
      out[round * 32 + static_cast<int>(threadIdx.x) - 32] = cells[threadIdx.x - 32];
      named_barrier(2, 64);
    }
  }
}
__global__ void wait_for_a_third() {
  named_barrier(3, 96);
}

TEST_F(EmulatorTest, NamedBarriersJoinPartsOfABlock) {
  for (const char* order : {"forward", "backward", "random:5"}) {
    emulator::set_order(order);
    auto out = device_vector(std::vector<int>(96));
    launch(producers_and_consumers, {dim3(1), dim3(64), 128}, stream_, out.get());
    const auto values = download(out, 96);
    for (int i = 0; i < 96; ++i) EXPECT_EQ(values[static_cast<size_t>(i)], i % 32 + 100 * (i / 32));
  }
  launch(wait_for_a_third, {dim3(1), dim3(64)}, stream_);
  EXPECT_THAT(error_of_device(), HasSubstr("at most the 64 threads"));
}

}  // namespace
}  // namespace phalanx
