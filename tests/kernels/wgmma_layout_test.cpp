// The index maps of Hopper's products: every element of a fragment and of an operand has one place.
#include "kernels/cuda/wgmma_layout.h"

#include <gtest/gtest.h>

#include <set>
#include <utility>

namespace phalanx::testing {
namespace {

TEST(WgmmaLayout, FragmentsCoverEveryElementOnce) {
  for (const int columns : {64, 128}) {
    std::set<std::pair<int, int>> seen;
    for (int thread = 0; thread < 128; ++thread) {
      for (int i = 0; i < columns / 2; ++i)
        seen.emplace(fragment_row(thread, i), fragment_column(thread, i));
    }
    EXPECT_EQ(seen.size(), static_cast<size_t>(64 * columns));
    EXPECT_EQ(*seen.begin(), std::pair(0, 0));
    EXPECT_EQ(*seen.rbegin(), std::pair(63, columns - 1));
  }
}

// A of m64k16 in registers: rows g and g + 8 of the warp's 16, columns 2 t + (0, 1), then those
// + 8.
TEST(WgmmaLayout, ProductsAreOperandsAsTheyLie) {
  for (int thread = 0; thread < 128; ++thread) {
    for (int step = 0; step < 8; ++step) {
      for (int r = 0; r < 4; ++r) {
        for (int low_high = 0; low_high < 2; ++low_high) {
          const int i = first_of_operand(step, r) + low_high;
          const int row = thread / 32 * 16 + thread % 32 / 4 + (r % 2 == 1 ? 8 : 0);
          const int column = step * 16 + thread % 4 * 2 + low_high + (r >= 2 ? 8 : 0);
          EXPECT_EQ(fragment_row(thread, i), row);
          EXPECT_EQ(fragment_column(thread, i), column);
        }
      }
    }
  }
}

// A step of 16 columns never leaves a row's 128 bytes, a step of 16 rows is two groups of eight.
TEST(WgmmaLayout, StepsStayInsideTheSwizzle) {
  for (const int rows : {64, 128}) {
    for (int step = 0; step < 8; ++step) {
      const int half = step * 16 / kHalfColumns;
      const int byte = column_step(rows, step) - half * rows * kRowBytes;
      EXPECT_EQ(byte, step * 16 % kHalfColumns * 2);
      EXPECT_LE(byte + 32, kRowBytes);
      EXPECT_EQ(row_step(step) % kGroupBytes, 0);
      EXPECT_EQ(row_step(step) / kRowBytes, step * 16);
    }
  }
}

}  // namespace
}  // namespace phalanx::testing
