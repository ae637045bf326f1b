// The zigzag cut of a sequence and the check of its length.
#include "parallel/context_parallel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace phalanx::test {
namespace {

using Ranges = std::vector<PositionRange>;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ContextPositions, Zigzag) {
  EXPECT_EQ(context_positions(7, 0, 1), (Ranges{{0, 7}}));
  EXPECT_EQ(context_positions(12, 0, 3), (Ranges{{0, 2}, {10, 12}}));
  EXPECT_EQ(context_positions(12, 1, 3), (Ranges{{2, 4}, {8, 10}}));
  EXPECT_EQ(context_positions(12, 2, 3), (Ranges{{4, 8}}));
}

TEST(ContextPositions, EveryPositionHasOneRank) {
  for (const int size : {1, 2, 5, 16}) {
    std::vector<int> holders(static_cast<size_t>(6 * size));
    for (int rank = 0; rank < size; ++rank)
      for (const PositionRange& range : context_positions(6 * size, rank, size))
        for (int64_t n = range.begin; n < range.end; ++n) ++holders[static_cast<size_t>(n)];
    EXPECT_THAT(holders, ::testing::Each(1)) << size;
  }
}

TEST(ContextPositions, UnevenCutIsRefused) {
  EXPECT_THAT([] { context_positions(10, 0, 2); },
              ::testing::ThrowsMessage<std::exception>(HasSubstr("10 positions")));
}

TEST(ValidateContext, NamesTheNearestLengths) {
  EXPECT_TRUE(validate_context(4096, 4, 32).empty());
  EXPECT_TRUE(validate_context(4099, 1, 32).empty());
  EXPECT_THAT(validate_context(4100, 4, 32), ElementsAre(HasSubstr("4096 or 4352")));
  EXPECT_THAT(validate_context(100, 4, 32), ElementsAre(HasSubstr("try seq-length 256")));
}

}  // namespace
}  // namespace phalanx::test
