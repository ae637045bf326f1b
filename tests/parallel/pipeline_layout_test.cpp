// Layers to stages: the best cut among all, and what a layout written by hand must be.
#include "parallel/pipeline_layout.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <functional>
#include <random>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

std::vector<int64_t> sizes(const std::vector<LayerRange>& ranges) {
  std::vector<int64_t> result;
  for (const LayerRange& range : ranges) result.push_back(range.size());
  return result;
}

double dearest(const std::vector<double>& costs, double first, double last,
               const std::vector<int64_t>& counts) {
  double most = 0;
  auto next = costs.begin();
  for (size_t stage = 0; stage < counts.size(); ++stage) {
    double cost = (stage == 0 ? first : 0) + (stage + 1 == counts.size() ? last : 0);
    for (int64_t i = 0; i < counts[stage]; ++i) cost += *next++;
    most = std::max(most, cost);
  }
  return most;
}

/// All ways to write `layers` as a sum of `stages` numbers.
void for_all_cuts(int64_t layers, size_t stages, std::vector<int64_t> counts,
                  const std::function<void(const std::vector<int64_t>&)>& visit) {
  if (counts.size() + 1 == stages) {
    counts.push_back(layers);
    visit(counts);
    return;
  }
  for (int64_t n = 0; n <= layers; ++n) {
    std::vector<int64_t> more = counts;
    more.push_back(n);
    for_all_cuts(layers - n, stages, more, visit);
  }
}

TEST(PipelineLayout, NoCutIsBetterAndNoneAsGoodHasFewerEmptyStages) {
  std::mt19937 random(3);
  const auto draw = [&](int most) { return static_cast<double>(random() % (most + 1)); };
  for (int trial = 0; trial < 400; ++trial) {
    std::vector<double> costs(random() % 8);
    std::generate(costs.begin(), costs.end(), [&] { return draw(6); });
    const double first = draw(5);
    const double last = draw(12);
    const auto stages = static_cast<int64_t>(1 + random() % 4);
    const std::vector<LayerRange> ranges = balance_layers(costs, first, last, stages);
    ASSERT_EQ(static_cast<int64_t>(ranges.size()), stages);
    int64_t begin = 0;
    for (const LayerRange& range : ranges) {
      ASSERT_EQ(range.begin, begin);
      ASSERT_GE(range.size(), 0);
      begin = range.end;
    }
    ASSERT_EQ(begin, static_cast<int64_t>(costs.size()));
    const double most = dearest(costs, first, last, sizes(ranges));
    const auto empty = [](const auto& counts) { return std::ranges::count(counts, 0); };
    for_all_cuts(begin, ranges.size(), {}, [&](const std::vector<int64_t>& counts) {
      const double other = dearest(costs, first, last, counts);
      ASSERT_LE(most, other);
      if (other == most) {
        ASSERT_LE(empty(sizes(ranges)), empty(counts));
      }
    });
  }
}

TEST(PipelineLayout, EvenCostsGiveEvenStages) {
  EXPECT_EQ(sizes(balance_layers(std::vector<double>(16, 1.0), 0, 0, 4)),
            (std::vector<int64_t>{4, 4, 4, 4}));
  EXPECT_EQ(sizes(balance_layers(std::vector<double>(3, 1.0), 0, 0, 1)), (std::vector<int64_t>{3}));
}

TEST(PipelineLayout, TheEndsCarryLess) {
  EXPECT_EQ(sizes(balance_layers(std::vector<double>(14, 1.0), 1, 1, 4)),
            (std::vector<int64_t>{3, 4, 4, 3}));
  // A head as dear as five layers leaves its stage empty only because that is best.
  EXPECT_EQ(sizes(balance_layers(std::vector<double>(6, 1.0), 0, 5, 3)),
            (std::vector<int64_t>{3, 3, 0}));
  EXPECT_EQ(sizes(balance_layers(std::vector<double>(4, 1.0), 0, 0.5, 4)),
            (std::vector<int64_t>{1, 1, 1, 1}));
}

TEST(PipelineLayout, WrittenByHand) {
  EXPECT_EQ(parse_pipeline_layout("3,4,0,3", 10, 4),
            (std::vector<LayerRange>{{0, 3}, {3, 7}, {7, 7}, {7, 10}}));
  EXPECT_THAT(
      [] { parse_pipeline_layout("3,4,3", 10, 4); },
      ThrowsMessage<UsageError>(AllOf(HasSubstr("3 stages for 4"), HasSubstr("try 3,3,2,2"))));
  EXPECT_THAT(
      [] { parse_pipeline_layout("3,4,4,3", 12, 4); },
      ThrowsMessage<UsageError>(AllOf(HasSubstr("14 layers for 12"), HasSubstr("3,3,3,3"))));
  EXPECT_THAT([] { parse_pipeline_layout("1,2", 5, 2); },
              ThrowsMessage<UsageError>(HasSubstr("try 3,2")));
  for (const char* text : {"", "3,", "3,x", "-1,4", "3, 4", "1e3,2", "99999999999999999999,1"})
    EXPECT_THAT([&] { parse_pipeline_layout(text, 7, 2); },
                ThrowsMessage<UsageError>(HasSubstr("is not a number of layers")))
        << text;
}

}  // namespace
}  // namespace phalanx
