// Tensor maps on plain memory: what the encoder accepts, and what copies bring.
#include "tests/cuda_emulator/hopper_tensor_map.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <vector>

namespace phalanx::emulator {
namespace {

/// Arguments of cuTensorMapEncodeTiled; as set here valid, 5-D, of 2-byte numbers.
struct Encoding {
  CUtensorMap map{};
  cuuint32_t rank = 5;
  static inline std::vector<uint16_t> data = std::vector<uint16_t>(24 * 7 * 5 * 4 * 3);
  size_t skipped_bytes = 0;
  cuuint64_t sizes[5] = {24, 7, 5, 4, 3};
  cuuint64_t strides[4] = {48, 48 * 7, 48 * 7 * 5, 48 * 7 * 5 * 4};
  cuuint32_t box[5] = {16, 4, 3, 2, 2};
  cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_NONE;

  CUresult encode() {
    return cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank,
                                  reinterpret_cast<unsigned char*>(data.data()) + skipped_bytes,
                                  sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                  swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  }
};

template <class Change>
CUresult encode_with(Change change) {
  Encoding encoding;
  change(encoding);
  return encoding.encode();
}

TEST(HopperTensorMap, RestrictionsOfTheManual) {
  EXPECT_EQ(encode_with([](Encoding&) {}), CUDA_SUCCESS);
  EXPECT_EQ(encode_with([](Encoding& e) { e.rank = 6; }), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(encode_with([](Encoding& e) { e.rank = 0; }), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(encode_with([](Encoding& e) { e.skipped_bytes = 8; }), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(encode_with([](Encoding& e) { e.sizes[2] = 0; }), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(encode_with([](Encoding& e) { e.strides[0] = 40; }), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(encode_with([](Encoding& e) { e.strides[3] = cuuint64_t{1} << 40; }),
            CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(encode_with([](Encoding& e) { e.box[1] = 257; }), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(encode_with([](Encoding& e) { e.box[1] = 256; }), CUDA_SUCCESS);
  EXPECT_EQ(encode_with([](Encoding& e) { e.box[0] = 12; }), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(encode_with([](Encoding& e) { e.steps[3] = 9; }), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(encode_with([](Encoding& e) {
              e.box[0] = 72;
              e.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
            }),
            CUDA_ERROR_INVALID_VALUE);
}

/// What a copy brings, by the plain definition, for rank 5 and 2-byte numbers.
std::vector<uint16_t> plain_box(const Encoding& e, const std::array<int32_t, 5>& start) {
  std::vector<uint16_t> box;
  const auto count = [&](int i) {
    return static_cast<int>((e.box[i] + e.steps[i] - 1) / e.steps[i]);
  };
  for (int p = 0; p < count(4); ++p)
    for (int o = 0; o < count(3); ++o)
      for (int n = 0; n < count(2); ++n)
        for (int m = 0; m < count(1); ++m)
          for (int l = 0; l < count(0); ++l) {
            const int index[5] = {l, m, n, o, p};
            bool inside = true;
            int64_t place = 0;
            for (int i = 0; i < 5; ++i) {
              const int64_t at = start[static_cast<size_t>(i)] + int64_t{index[i]} * e.steps[i];
              inside = inside && at >= 0 && at < static_cast<int64_t>(e.sizes[i]);
              place += at * (i == 0 ? 1 : static_cast<int64_t>(e.strides[i - 1] / 2));
            }
            box.push_back(inside ? Encoding::data[static_cast<size_t>(place)] : uint16_t{0});
          }
  return box;
}

TEST(HopperTensorMap, FiveDimensionsStepsAndEdges) {
  std::iota(Encoding::data.begin(), Encoding::data.end(), uint16_t{1});
  Encoding encoding;
  encoding.steps[1] = 3;
  encoding.steps[3] = 2;
  ASSERT_EQ(encoding.encode(), CUDA_SUCCESS);
  const TensorMapFields& fields = *fields_of(encoding.map);
  EXPECT_EQ(fields.box_bytes(), 16U * 2 * 3 * 1 * 2 * 2);
  for (const std::array<int32_t, 5>& start : {std::array{0, 0, 0, 0, 0},
                                              {8, 3, 2, 1, 1},
                                              {16, 5, 4, 3, 2},
                                              {-3, -1, -2, 0, -1},
                                              {24, 0, 0, 0, 0}}) {
    std::vector<uint16_t> target(fields.box_bytes() / 2, 0xffff);
    copy_box(fields, start, reinterpret_cast<unsigned char*>(target.data()), 1024);
    EXPECT_EQ(target, plain_box(encoding, start)) << start[0];
  }
}

TEST(HopperTensorMap, SwizzlesOf32And64Bytes) {
  std::iota(Encoding::data.begin(), Encoding::data.end(), uint16_t{1});
  for (const auto& [swizzle, columns] :
       {std::pair{CU_TENSOR_MAP_SWIZZLE_32B, 16}, {CU_TENSOR_MAP_SWIZZLE_64B, 32}}) {
    Encoding encoding;
    encoding.rank = 2;
    encoding.sizes[0] = 64;
    encoding.sizes[1] = 16;
    encoding.strides[0] = 128;
    encoding.box[0] = static_cast<cuuint32_t>(columns);
    encoding.box[1] = 16;
    encoding.swizzle = swizzle;
    ASSERT_EQ(encoding.encode(), CUDA_SUCCESS);
    std::vector<uint16_t> target(static_cast<size_t>(columns * 16));
    const std::array<int32_t, 2> start{8, 0};
    copy_box(*fields_of(encoding.map), start, reinterpret_cast<unsigned char*>(target.data()),
             2048);
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < columns; ++column) {
        // Lines of 128 bytes hold 4 or 2 rows; the line's number turns the row's pieces.
        const int line = row * columns * 2 / 128;
        const int piece = column / 8 ^ line % (columns / 8);
        EXPECT_EQ(target[static_cast<size_t>(row * columns + piece * 8 + column % 8)],
                  Encoding::data[static_cast<size_t>(row * 64 + column + 8)]);
      }
  }
}

TEST(HopperTensorMap, RefusedCopies) {
  Encoding encoding;
  encoding.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
  ASSERT_EQ(encoding.encode(), CUDA_SUCCESS);
  EXPECT_NE(copy_error(*fields_of(encoding.map), 2048), "") << "32 bytes in a swizzle of 128";
  encoding.box[0] = 64;
  ASSERT_EQ(encoding.encode(), CUDA_SUCCESS);
  EXPECT_EQ(copy_error(*fields_of(encoding.map), 2048), "");
  EXPECT_NE(copy_error(*fields_of(encoding.map), 2048 + 64), "");
  CUtensorMap moved = encoding.map;
  moved.opaque[0] = 0;
  EXPECT_EQ(fields_of(moved), nullptr);
}

}  // namespace
}  // namespace phalanx::emulator
