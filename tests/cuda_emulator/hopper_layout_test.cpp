// Layouts of Hopper's operands against the numbers that the PTX ISA prints.
#include <gtest/gtest.h>

#include <array>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "tests/cuda_emulator/hopper_layout.h"

namespace phalanx::emulator {
namespace {

TEST(HopperLayout, SwizzlesAsTheTablesOfTheManual) {
  // "Swizzling Modes": number of the 16-byte piece that lies at each place of each 128-byte line.
  constexpr std::array<const char*, 8> kLines128 = {"01234567", "10325476", "23016745", "32107654",
                                                    "45670123", "54761032", "67452301", "76543210"};
  constexpr std::array<const char*, 4> kLines64 = {"01234567", "10325476", "23016745", "32107654"};
  constexpr std::array<const char*, 2> kLines32 = {"01234567", "10325476"};
  const auto expect = [](SwizzleSpan span, const auto& lines) {
    for (uint32_t line = 0; line < 16; ++line)
      for (uint32_t place = 0; place < 8; ++place) {
        const auto piece = static_cast<uint32_t>(lines[line % lines.size()][place] - '0');
        EXPECT_EQ(swizzled(1024 + line * 128 + piece * 16 + 5, span),
                  1024 + line * 128 + place * 16 + 5)
            << "span " << span << " line " << line;
      }
  };
  expect(128, kLines128);
  expect(64, kLines64);
  expect(32, kLines32);
  EXPECT_EQ(swizzled(0xfff, 16), 0xfffU);
}

TEST(HopperLayout, DecodesTheFieldsOfADescriptor) {
  const uint64_t bits = 0x123 | uint64_t{0x2345} << 16 | uint64_t{0x3456} << 32 |
                        uint64_t{5} << 49 | uint64_t{2} << 62;
  const MatrixDescriptor d = decode_descriptor(bits);
  EXPECT_EQ(d.start, 0x1230U);
  EXPECT_EQ(d.leading_bytes, 0x23450U);
  EXPECT_EQ(d.stride_bytes, 0x34560U);
  EXPECT_EQ(d.base_offset, 5U);
  EXPECT_EQ(d.span, 64U);
  EXPECT_EQ(d.unused_bits, 0U);
  EXPECT_EQ(decode_descriptor(uint64_t{1} << 62).span, 128U);
  EXPECT_EQ(decode_descriptor(uint64_t{3} << 62).span, 32U);
  EXPECT_EQ(decode_descriptor(0).span, 16U);
  EXPECT_NE(decode_descriptor(uint64_t{1} << 46).unused_bits, 0U);
}

/// Element offset in a CuTe layout ((a0, a1, ..), (b0, b1, ..)):((..), (..)) at (row, column).
uint32_t layout_offset(std::span<const std::pair<uint32_t, uint32_t>> modes, uint32_t index) {
  uint32_t offset = 0;
  for (const auto& [size, stride] : modes) {
    offset += index % size * stride;
    index /= size;
  }
  return offset;
}
using Modes = std::vector<std::pair<uint32_t, uint32_t>>;

void expect_layout(const SharedOperand& operand, const Modes& mn_modes, const Modes& k_modes) {
  for (int mn = 0; mn < operand.extent; ++mn)
    for (int k = 0; k < 16; ++k) {
      const uint32_t offset = layout_offset(mn_modes, static_cast<uint32_t>(mn)) +
                              layout_offset(k_modes, static_cast<uint32_t>(k));
      ASSERT_EQ(element_address(operand, mn, k),
                swizzled(operand.descriptor.start + 2 * offset, operand.descriptor.span))
          << mn << ", " << k;
    }
}

TEST(HopperLayout, ExamplesOfTheManual) {
  // "Canonical Layouts", the bf16 examples with their exact layouts, LBO and SBO (in bytes here).
  expect_layout({{.start = 4096, .leading_bytes = 256, .stride_bytes = 128, .span = 16}, true, 16},
                {{8, 1}, {1, 8}, {2, 64}}, {{8, 8}, {2, 128}});
  expect_layout({{.start = 4096, .leading_bytes = 256, .stride_bytes = 512, .span = 32}, true, 32},
                {{8, 1}, {2, 8}, {2, 128}}, {{8, 16}, {2, 256}});
  expect_layout({{.start = 4096, .leading_bytes = 512, .stride_bytes = 1024, .span = 64}, true, 64},
                {{8, 1}, {4, 8}, {2, 256}}, {{8, 32}, {2, 512}});
}

TEST(HopperLayout, RowsOf128Bytes) {
  // K-major tile [64, 64] as TMA writes it, second slice of the depth: row r at r * 128, columns
  // 16 to 31 in pieces 2 and 3, XORed with the row's number.
  const SharedOperand rows{{.start = 2048 + 32, .stride_bytes = 1024, .span = 128}, false, 64};
  EXPECT_EQ(operand_error(rows), "");
  EXPECT_EQ(element_address(rows, 0, 0), 2048U + 32);
  EXPECT_EQ(element_address(rows, 1, 0), 2048U + 128 + 3 * 16);
  EXPECT_EQ(element_address(rows, 5, 9), 2048U + 5 * 128 + 6 * 16 + 2);
  EXPECT_EQ(element_address(rows, 13, 8), 2048U + 13 * 128 + 6 * 16);
  // MN-major tile of depth rows, 128 columns in two boxes of 4,096 bytes.
  const SharedOperand columns{
      {.start = 1024, .leading_bytes = 4096, .stride_bytes = 1024, .span = 128}, true, 128};
  EXPECT_EQ(operand_error(columns), "");
  EXPECT_EQ(element_address(columns, 0, 1), 1024U + 128 + 16);
  EXPECT_EQ(element_address(columns, 64, 10), 1024U + 4096 + 1024 + 2 * 128 + 2 * 16);
}

TEST(HopperLayout, RefusesWhatIsNotDocumented) {
  const SharedOperand good{{.start = 2048, .stride_bytes = 1024, .span = 128}, false, 64};
  auto bad = good;
  bad.descriptor.base_offset = 1;
  EXPECT_NE(operand_error(bad), "");
  bad = good;
  bad.descriptor.start = 2048 + 512;
  EXPECT_NE(operand_error(bad), "");
  bad = good;
  bad.descriptor.start = 2048 + 112;
  EXPECT_NE(operand_error(bad), "");
  bad = good;
  bad.descriptor.stride_bytes = 512;
  EXPECT_NE(operand_error(bad), "");
  bad = {{.start = 2048, .leading_bytes = 8192, .stride_bytes = 1024, .span = 128}, true, 96};
  EXPECT_NE(operand_error(bad), "");
}

TEST(HopperLayout, FragmentsCoverTheirMatrixOnce) {
  std::set<std::pair<int, int>> sums;
  std::set<std::pair<int, int>> multiplicands;
  for (int thread = 0; thread < 128; ++thread) {
    for (int i = 0; i < 64; ++i) {
      const Place place = accumulator_place(thread, i);
      sums.emplace(place.row, place.column);
    }
    for (int i = 0; i < 8; ++i) {
      const Place place = multiplicand_place(thread, i);
      multiplicands.emplace(place.row, place.column);
    }
  }
  EXPECT_EQ(sums.size(), 64U * 128);
  EXPECT_EQ(*sums.rbegin(), std::pair(63, 127));
  EXPECT_EQ(multiplicands.size(), 64U * 16);
  EXPECT_EQ(*multiplicands.rbegin(), std::pair(63, 15));
  // Figure of D: T0 holds d0, d1 of row 0, d2, d3 of row 8, d4 of column 8; T5 row 1, columns 2, 3.
  EXPECT_EQ(accumulator_place(0, 3).row, 8);
  EXPECT_EQ(accumulator_place(0, 4).column, 8);
  EXPECT_EQ(accumulator_place(37, 1).row, 17);
  EXPECT_EQ(accumulator_place(37, 1).column, 3);
  // Figure of A: T0 holds a0, a1 of row 0, a2, a3 of row 8, a4, a5 of columns 8, 9.
  EXPECT_EQ(multiplicand_place(0, 2).row, 8);
  EXPECT_EQ(multiplicand_place(0, 2).column, 0);
  EXPECT_EQ(multiplicand_place(0, 5).row, 0);
  EXPECT_EQ(multiplicand_place(0, 5).column, 9);
}

}  // namespace
}  // namespace phalanx::emulator
