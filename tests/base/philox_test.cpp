// The counter RNG: published test vectors, independence of streams, the cut normal's moments.
// moments.
#include "kernels/base/philox.h"

#include <gtest/gtest.h>

namespace phalanx {
namespace {

// Known answers of Random123's kat_vectors for philox4x32-10.
TEST(Philox, MatchesPublishedVectors) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, 0),
            (std::array<uint32_t, 4>{0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U}));
  EXPECT_EQ(philox4x32({~0U, ~0U, ~0U, ~0U}, ~uint64_t{0}),
            (std::array<uint32_t, 4>{0x408f276dU, 0x41c83b0eU, 0xa20bc7c6U, 0x6d5451fdU}));
  EXPECT_EQ(philox4x32({0x243f6a88U, 0x85a308d3U, 0x13198a2eU, 0x03707344U}, 0x299f31d0a4093822U),
            (std::array<uint32_t, 4>{0xd16cfe09U, 0x94fdccebU, 0x5001e420U, 0x24126ea1U}));
}

TEST(Philox, TruncatedNormalHasTheMomentsOfTheCutNormal) {
  const Philox random(1234, "layers.00.mlp.gate.weight");
  const int64_t n = 200000;
  double sum = 0;
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double x = random.truncated_normal(static_cast<uint64_t>(i), 3.0);
    ASSERT_LE(std::abs(x), 3.0);
    sum += x;
    squares += x * x;
  }
  // Variance of N(0,1) cut at 3: 1 - 2*3*phi(3)/(2*Phi(3)-1) = 0.97334; 5 sigma bounds.
  EXPECT_NEAR(sum / n, 0.0, 5 / std::sqrt(n));
  EXPECT_NEAR(squares / n, 0.97334, 5 * std::sqrt(2.0 / n));
}

TEST(Philox, StreamsDifferByNameAndSeed) {
  EXPECT_NE(Philox(1, "a").uniform(7), Philox(1, "b").uniform(7));
  EXPECT_NE(Philox(1, "a").uniform(7), Philox(2, "a").uniform(7));
  EXPECT_EQ(Philox(1, "a").uniform(7), Philox(1, "a").uniform(7));
}

}  // namespace
}  // namespace phalanx
