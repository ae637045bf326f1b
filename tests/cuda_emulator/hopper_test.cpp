// Hopper's instructions in the emulator, each against an independent plain computation.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx_hopper.h"
#include "tests/cuda_emulator/emulator_fixture.h"

namespace phalanx {
namespace {

using emulator::EmulatorTest;

constexpr const char* kOrders[] = {"forward", "backward", "random:1", "random:2", "random:3"};

/// Small integers, whose products and sums are exact in f32.
std::vector<BFloat16> integers(size_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::uniform_int_distribution<int> digits(-8, 8);
  std::vector<BFloat16> values(count);
  for (BFloat16& value : values) value = BFloat16(static_cast<float>(digits(engine)));
  return values;
}

float as_float(BFloat16 value) {
  return unpack_bf16(value.bits).x;
}

/// Writes the accumulators of a product as the header describes them.
template <int count>
void store_sums(float* out, const float (&d)[count]) {
  const int w = static_cast<int>(threadIdx.x) / 32 % 4;
  const int g = static_cast<int>(threadIdx.x) % 32 / 4;
  const int t = static_cast<int>(threadIdx.x) % 4;
  for (int j = 0; j < count / 4; ++j)
    for (int i = 0; i < 4; ++i)
      out[(16 * w + g + i / 2 * 8) * 2 * count + 8 * j + 2 * t + i % 2] = d[4 * j + i];
}

constexpr int kBoxColumns = 64;
constexpr uint32_t kRowBytes = 128;
constexpr uint32_t kGroupBytes = 1024;
constexpr int kDepth = 16;

/// An operand in shared memory: boxes of 64 columns side by side, each `rows` of 128 bytes.
struct Tile {
  unsigned char* data;
  int rows;
  uint32_t box_bytes() const { return static_cast<uint32_t>(rows) * kRowBytes; }

  template <Major major>
  uint64_t slice(int number) const {
    if constexpr (major == Major::k) {
      const auto column_bytes = static_cast<uint32_t>(number % 4 * 32);
      return matrix_descriptor(
          data + static_cast<uint32_t>(number / 4) * box_bytes() + column_bytes, kGroupBytes, 0);
    } else {
      return matrix_descriptor(data + static_cast<uint32_t>(number) * 2 * kGroupBytes, kGroupBytes,
                               box_bytes());
    }
  }
};

void load_tile(const Tile& tile, const TensorMap& map, int columns, uint64_t* barrier) {
  for (int box = 0; box * kBoxColumns < columns; ++box)
    tensor_load(tile.data + static_cast<uint32_t>(box) * tile.box_bytes(), map, box * kBoxColumns,
                0, 0, barrier);
}

int boxes(int columns) {
  return (columns + kBoxColumns - 1) / kBoxColumns;
}

struct ProductShape {
  int depth;                                 // what is summed over
  int rows_a, columns_a, rows_b, columns_b;  // as stored
};

/// out[64, 2 count] = A B; A stored [64, depth] (Major::k) or [depth, 64], B [N, depth] or [depth,
/// N].
template <Major major_a, Major major_b, int count>
__global__ void product(const __grid_constant__ TensorMap a_map,
                        const __grid_constant__ TensorMap b_map, ProductShape shape, float* out) {
  __shared__ uint64_t barrier;
  auto* shared = dynamic_shared<unsigned char>();
  const Tile a{shared, shape.rows_a};
  const Tile b{shared + static_cast<uint32_t>(boxes(shape.columns_a)) * a.box_bytes(),
               shape.rows_b};
  if (threadIdx.x == 0) {
    barrier_init(&barrier, 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_arrive_expecting(&barrier,
                             static_cast<uint32_t>(boxes(shape.columns_a)) * a.box_bytes() +
                                 static_cast<uint32_t>(boxes(shape.columns_b)) * b.box_bytes());
    load_tile(a, a_map, shape.columns_a, &barrier);
    load_tile(b, b_map, shape.columns_b, &barrier);
  }
  barrier_wait(&barrier, 0);
  float d[count];
  wgmma_fence();
  for (int k = 0; k < shape.depth / kDepth; ++k)
    wgmma<major_a, major_b>(d, a.slice<major_a>(k), b.slice<major_b>(k), k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  store_sums(out, d);
}

class HopperTest : public EmulatorTest {
 protected:
  template <Major major_a, Major major_b, int count>
  void check_product(int depth) {
    constexpr int kColumns = 2 * count;
    const bool a_by_k = major_a == Major::k;
    const bool b_by_k = major_b == Major::k;
    const ProductShape shape{depth, a_by_k ? 64 : depth, a_by_k ? depth : 64,
                             b_by_k ? kColumns : depth, b_by_k ? depth : kColumns};
    const auto a = integers(size_t{64} * static_cast<size_t>(depth), 1);
    const auto b = integers(static_cast<size_t>(kColumns * depth), 2);
    auto device_a = device_vector(a);
    auto device_b = device_vector(b);
    auto out = device_vector(std::vector<float>(size_t{64} * kColumns, 0.0F));
    const auto a_map = make_tensor_map(device_a.get(), {shape.columns_a, shape.rows_a, 1},
                                       {kBoxColumns, shape.rows_a, 1});
    const auto b_map = make_tensor_map(device_b.get(), {shape.columns_b, shape.rows_b, 1},
                                       {kBoxColumns, shape.rows_b, 1});
    launch(product<major_a, major_b, count>, {dim3(1), dim3(128), 200 << 10}, stream_, a_map, b_map,
           shape, out.get());
    const auto result = download(out, size_t{64} * kColumns);
    for (int row = 0; row < 64; ++row)
      for (int column = 0; column < kColumns; ++column) {
        float sum = 0;
        for (int k = 0; k < depth; ++k)
          sum +=
              as_float(a[static_cast<size_t>(a_by_k ? row * depth + k : k * 64 + row)]) *
              as_float(b[static_cast<size_t>(b_by_k ? column * depth + k : k * kColumns + column)]);
        ASSERT_EQ(result[static_cast<size_t>(row * kColumns + column)], sum)
            << row << ", " << column;
      }
  }

  template <Major major_a, Major major_b>
  void check_products() {
    for (const char* order : kOrders)
      for (const int depth : {64, 96, 128}) {
        SCOPED_TRACE(testing::Message() << "depth " << depth << ", order " << order);
        emulator::set_order(order);
        check_product<major_a, major_b, 32>(depth);
        check_product<major_a, major_b, 64>(depth);
      }
  }
};

TEST_F(HopperTest, ProductsOfTilesThatTmaBrought) {
  check_products<Major::k, Major::k>();
  check_products<Major::k, Major::mn>();
  check_products<Major::mn, Major::k>();
  check_products<Major::mn, Major::mn>();
}

/// The same with A in registers, B [depth, 128] in shared memory, onto sums that start at one.
__global__ void product_of_registers(const BFloat16* a, const __grid_constant__ TensorMap b_map,
                                     int depth, float* out) {
  __shared__ uint64_t barrier;
  const Tile b{dynamic_shared<unsigned char>(), depth};
  if (threadIdx.x == 0) {
    barrier_init(&barrier, 1);
    barrier_init_fence();
    barrier_arrive_expecting(&barrier, 2 * b.box_bytes());
    load_tile(b, b_map, 128, &barrier);
  }
  __syncthreads();
  barrier_wait(&barrier, 0);
  const int row = static_cast<int>(threadIdx.x) / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
  float d[64];
  for (float& sum : d) sum = 1;
  for (int k = 0; k < depth; k += kDepth) {
    uint32_t pairs[4];
    for (int i = 0; i < 4; ++i) {
      const BFloat16* pair = a + (row + i % 2 * 8) * depth + k + column + i / 2 * 8;
      pairs[i] = uint32_t{pair[0].bits} | uint32_t{pair[1].bits} << 16;
    }
    wgmma_fence();
    wgmma<Major::mn>(d, pairs, b.slice<Major::mn>(k / kDepth), true);
    wgmma_commit();
    wgmma_wait<1>();
  }
  wgmma_wait<0>();
  store_sums(out, d);
}

TEST_F(HopperTest, ProductsWithAInRegisters) {
  for (const char* order : kOrders)
    for (const int depth : {64, 96, 128}) {
      emulator::set_order(order);
      const auto a = integers(size_t{64} * static_cast<size_t>(depth), 3);
      const auto b = integers(static_cast<size_t>(128 * depth), 4);
      auto device_a = device_vector(a);
      auto device_b = device_vector(b);
      auto out = device_vector(std::vector<float>(size_t{64} * 128, 0.0F));
      launch(product_of_registers, {dim3(1), dim3(128), 64 << 10}, stream_, device_a.get(),
             make_tensor_map(device_b.get(), {128, depth, 1}, {kBoxColumns, depth, 1}), depth,
             out.get());
      const auto result = download(out, size_t{64} * 128);
      for (int row = 0; row < 64; ++row)
        for (int column = 0; column < 128; ++column) {
          float sum = 1;
          for (int k = 0; k < depth; ++k)
            sum += as_float(a[static_cast<size_t>(row * depth + k)]) *
                   as_float(b[static_cast<size_t>(k * 128 + column)]);
          ASSERT_EQ(result[static_cast<size_t>(row * 128 + column)], sum) << row << ", " << column;
        }
    }
}

struct BoxStart {
  int column, row, plane;
};

/// Copies a box to shared memory and out again, undoing the swizzle.
__global__ void copy_box(const __grid_constant__ TensorMap map, BoxStart at, int rows,
                         BFloat16* out) {
  __shared__ uint64_t barrier;
  auto* shared = dynamic_shared<BFloat16>();
  if (threadIdx.x == 0) {
    barrier_init(&barrier, 1);
    barrier_init_fence();
    barrier_arrive_expecting(&barrier, static_cast<uint32_t>(rows) * kRowBytes);
    tensor_load(shared, map, at.column, at.row, at.plane, &barrier);
  }
  __syncthreads();
  barrier_wait(&barrier, 0);
  for (int i = static_cast<int>(threadIdx.x); i < rows * kBoxColumns; i += 128) {
    const int row = i / kBoxColumns;
    const int piece = i % kBoxColumns / 8;
    out[i] = shared[row * kBoxColumns + (piece ^ row % 8) * 8 + i % 8];
  }
}

TEST_F(HopperTest, BoxesOutsideOfTheTensorAreZero) {
  constexpr int kColumns = 96;
  constexpr int kRows = 37;
  constexpr int kPlanes = 3;
  constexpr int kBoxRows = 24;
  const auto values = integers(size_t{kColumns} * kRows * kPlanes, 5);
  auto tensor = device_vector(values);
  auto out = device_vector(std::vector<BFloat16>(size_t{kBoxRows} * kBoxColumns));
  const auto map =
      make_tensor_map(tensor.get(), {kColumns, kRows, kPlanes}, {kBoxColumns, kBoxRows, 1});
  for (const BoxStart at : {BoxStart{0, 0, 0},
                            {64, 20, 1},
                            {-8, -3, 2},
                            {64, 36, 2},
                            {8, 0, 3},
                            {8, 0, -1},
                            {200, 0, 0}}) {
    launch(copy_box, {dim3(1), dim3(128), 8 << 10}, stream_, map, at, kBoxRows, out.get());
    const auto result = download(out, size_t{kBoxRows} * kBoxColumns);
    for (int i = 0; i < kBoxRows * kBoxColumns; ++i) {
      const int column = at.column + i % kBoxColumns;
      const int row = at.row + i / kBoxColumns;
      const bool inside = column >= 0 && column < kColumns && row >= 0 && row < kRows &&
                          at.plane >= 0 && at.plane < kPlanes;
      const auto place = static_cast<size_t>((at.plane * kRows + row) * kColumns + column);
      ASSERT_EQ(as_float(result[static_cast<size_t>(i)]), inside ? as_float(values[place]) : 0.0F)
          << at.column << ", " << at.row << ", " << at.plane << ": " << i;
    }
  }
}

constexpr int kStages = 3;

/// A producer warpgroup brings tiles through kStages buffers; two consumer warpgroups add them up
/// as products with A: out[warpgroup] = sum over tiles of A[64, 64] tile[64, 64].
__global__ void pipeline(const __grid_constant__ TensorMap a_map,
                         const __grid_constant__ TensorMap tiles, int count, float* out) {
  __shared__ uint64_t full[kStages];
  __shared__ uint64_t empty[kStages];
  __shared__ uint64_t a_full;
  constexpr uint32_t kTileBytes = 64 * kRowBytes;
  auto* shared = dynamic_shared<unsigned char>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], 2);
    }
    barrier_init(&a_full, 1);
    barrier_init_fence();
  }
  __syncthreads();
  const Tile a{shared + kStages * kTileBytes, 64};
  if (threadIdx.x < kWarpgroup) {
    lower_registers<24>();
    if (threadIdx.x != 0) return;
    barrier_arrive_expecting(&a_full, kTileBytes);
    tensor_load(a.data, a_map, 0, 0, 0, &a_full);
    for (int i = 0; i < count; ++i) {
      const int stage = i % kStages;
      const uint32_t round = static_cast<uint32_t>(i / kStages) & 1U;
      barrier_wait(&empty[stage], round ^ 1U);
      barrier_arrive_expecting(&full[stage], kTileBytes);
      tensor_load(shared + static_cast<uint32_t>(stage) * kTileBytes, tiles, 0, 0, i, &full[stage]);
    }
    return;
  }
  raise_registers<240>();
  barrier_wait(&a_full, 0);
  float d[32];
  for (int i = 0; i < count; ++i) {
    const int stage = i % kStages;
    const Tile tile{shared + static_cast<uint32_t>(stage) * kTileBytes, 64};
    barrier_wait(&full[stage], static_cast<uint32_t>(i / kStages) & 1U);
    wgmma_fence();
    for (int k = 0; k < 4; ++k)
      wgmma<Major::k, Major::mn>(d, a.slice<Major::k>(k), tile.slice<Major::mn>(k), i + k > 0);
    wgmma_commit();
    wgmma_wait<0>();
    named_barrier(1 + static_cast<int>(threadIdx.x) / kWarpgroup, kWarpgroup);
    if (threadIdx.x % kWarpgroup == 0) barrier_arrive(&empty[stage]);
  }
  store_sums(out + (threadIdx.x / kWarpgroup - 1) * 64 * 64, d);
}

TEST_F(HopperTest, PipelineOfManyPhases) {
  constexpr int kTiles = 11;
  const auto a = integers(64 * 64, 6);
  const auto tiles = integers(size_t{kTiles} * 64 * 64, 7);
  auto device_a = device_vector(a);
  auto device_tiles = device_vector(tiles);
  for (const char* order : kOrders) {
    emulator::set_order(order);
    auto out = device_vector(std::vector<float>(size_t{2} * 64 * 64, 0.0F));
    launch(pipeline, {dim3(2), dim3(3 * kWarpgroup), 40 << 10}, stream_,
           make_tensor_map(device_a.get(), {64, 64, 1}, {64, 64, 1}),
           make_tensor_map(device_tiles.get(), {64, 64, kTiles}, {64, 64, 1}), kTiles, out.get());
    const auto result = download(out, size_t{2} * 64 * 64);
    for (size_t i = 0; i < result.size(); ++i) {
      float sum = 0;
      for (size_t k = 0; k < size_t{64} * kTiles; ++k)
        sum += as_float(a[i / 64 % 64 * 64 + k % 64]) * as_float(tiles[k * 64 + i % 64]);
      ASSERT_EQ(result[i], sum) << order << ": " << i;
    }
  }
}

}  // namespace
}  // namespace phalanx
