// Next-token choice and UTF-8 boundaries.
#include "core/train/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/philox.h"

namespace phalanx {
namespace {

// softmax = 1/8, 1/2, 1/4, 1/8
const std::vector<float> kLogits{0.0F, std::log(4.0F), std::log(2.0F), 0.0F};
// Softmax of four f32 logits: a few roundings of f32 logs.
constexpr double kTolerance = 8 * 0x1p-23;

std::vector<int32_t> tokens_of(const std::vector<Candidate>& list) {
  std::vector<int32_t> tokens;
  for (const Candidate& candidate : list) tokens.push_back(candidate.token);
  return tokens;
}

TEST(Sampling, GreedyTakesTheLargestAndTheLowerIdOnTies) {
  EXPECT_EQ(choose_token(kLogits, {.temperature = 0}, 0.999), 1);
  const std::vector<float> tie{1.0F, 5.0F, 5.0F};
  EXPECT_EQ(choose_token(tie, {.temperature = 0}, 0.5), 1);
}

TEST(Sampling, ProbabilitiesAreTheSoftmax) {
  const auto list = candidates(kLogits, {});
  EXPECT_THAT(tokens_of(list), testing::ElementsAre(1, 2, 0, 3));
  EXPECT_NEAR(list[0].probability, 0.5, kTolerance);
  EXPECT_NEAR(list[1].probability, 0.25, kTolerance);
  EXPECT_NEAR(list[3].probability, 0.125, kTolerance);
}

TEST(Sampling, TemperatureSharpens) {
  // logits / 0.5 squares the odds: 1, 16, 4, 1 of 22.
  const auto list = candidates(kLogits, {.temperature = 0.5});
  EXPECT_NEAR(list[0].probability, 16.0 / 22, kTolerance);
  EXPECT_NEAR(list[1].probability, 4.0 / 22, kTolerance);
}

TEST(Sampling, TopKKeepsTheMostProbable) {
  const auto list = candidates(kLogits, {.top_k = 2});
  EXPECT_THAT(tokens_of(list), testing::ElementsAre(1, 2));
  EXPECT_NEAR(list[0].probability, 2.0 / 3, kTolerance);
  EXPECT_EQ(candidates(kLogits, {.top_k = 100}).size(), 4U);
}

TEST(Sampling, TopPKeepsTheSmallestSetThatReachesIt) {
  EXPECT_THAT(tokens_of(candidates(kLogits, {.top_p = 0.49})), testing::ElementsAre(1));
  EXPECT_THAT(tokens_of(candidates(kLogits, {.top_p = 0.6})), testing::ElementsAre(1, 2));
  EXPECT_THAT(tokens_of(candidates(kLogits, {.top_p = 0.8})), testing::ElementsAre(1, 2, 0));
  EXPECT_EQ(candidates(kLogits, {.top_p = 1e-9}).size(), 1U);  // never none
}

TEST(Sampling, TheUniformNumberChoosesByCumulativeProbability) {
  EXPECT_EQ(choose_token(kLogits, {}, 0.49), 1);
  EXPECT_EQ(choose_token(kLogits, {}, 0.51), 2);
  EXPECT_EQ(choose_token(kLogits, {}, 0.76), 0);
  EXPECT_EQ(choose_token(kLogits, {}, std::nextafter(1.0, 0.0)), 3);
}

TEST(Sampling, FrequenciesFollowTheProbabilities) {
  const Philox random(7, "sampling test");
  constexpr int kDraws = 4000;
  std::vector<double> counts(4, 0.0);
  for (int i = 0; i < kDraws; ++i)
    counts[static_cast<size_t>(choose_token(kLogits, {}, random.uniform(i)))] += 1;
  const std::vector<double> expected{0.125, 0.5, 0.25, 0.125};
  for (size_t t = 0; t < 4; ++t) {
    // Five standard deviations of a binomial count.
    const double deviation = std::sqrt(kDraws * expected[t] * (1 - expected[t]));
    EXPECT_NEAR(counts[t], kDraws * expected[t], 5 * deviation);
  }
}

TEST(Sampling, InfiniteLogitsAreNeverChosenAndNanIsAnError) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> masked{-infinity, 1.0F, -infinity};
  EXPECT_EQ(choose_token(masked, {}, 0.9999), 1);
  const std::vector<float> bad{0.0F, std::numeric_limits<float>::quiet_NaN()};
  EXPECT_THROW(choose_token(bad, {}, 0.5), Error);
}

TEST(Sampling, OptionsOutOfRangeAreAllNamed) {
  try {
    check_sampling({.temperature = -1, .top_k = -2, .top_p = 0});
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(),
                testing::AllOf(testing::HasSubstr("temperature -1"), testing::HasSubstr("top-k -2"),
                               testing::HasSubstr("top-p 0")));
  }
  EXPECT_NO_THROW(check_sampling({}));
}

TEST(Utf8, APrefixNeverEndsInsideACharacter) {
  const std::string text = "a\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80";  // a, a umlaut, euro, face
  const std::vector<size_t> ends{0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10};
  for (size_t length = 0; length <= text.size(); ++length)
    EXPECT_EQ(complete_utf8_prefix(std::string_view(text).substr(0, length)), ends[length]);
}

TEST(Utf8, BytesThatAreNoTextDoNotBlock) {
  EXPECT_EQ(complete_utf8_prefix("\xFF"), 1U);
  EXPECT_EQ(complete_utf8_prefix("\xC0"), 1U);
  EXPECT_EQ(complete_utf8_prefix("\x80\x80\x80\x80"), 4U);
  EXPECT_EQ(complete_utf8_prefix("ab\xF8"), 3U);
}

}  // namespace
}  // namespace phalanx
