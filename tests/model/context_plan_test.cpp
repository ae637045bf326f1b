// What ranks of a shared sequence read from each other, against the mask pair by pair, and how even
// the zigzag cut makes their work.
#include "core/model/context_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "core/model/model_cost.h"
#include "parallel/context_parallel.h"

namespace phalanx::testing {
namespace {

using Ranges = std::vector<PositionRange>;

bool sees(const AttentionMask& mask, const Ranges& queries, AttentionRow key) {
  for (const PositionRange& range : queries)
    for (int64_t n = range.begin; n < range.end; ++n)
      for (int64_t copy = 0; copy < mask.copies; ++copy)
        if (mask.visible({n, copy}, key)) return true;
  return false;
}

/// Positions of `held` of which some copy of `band` is seen.
std::set<int64_t> seen_positions(const AttentionMask& mask, const CopyBand& band,
                                 const Ranges& queries, const Ranges& held) {
  std::set<int64_t> seen;
  for (const PositionRange& range : held)
    for (int64_t m = range.begin; m < range.end; ++m)
      for (int64_t copy = band.first; copy < band.first + band.count; ++copy)
        if (sees(mask, queries, {m, copy})) seen.insert(m);
  return seen;
}

std::set<int64_t> positions_of(const Ranges& ranges) {
  std::set<int64_t> positions;
  for (const PositionRange& range : ranges)
    for (int64_t m = range.begin; m < range.end; ++m) positions.insert(m);
  return positions;
}

/// Masks under which exactly what is seen is read, on pieces of multiples of 4 positions.
std::vector<AttentionMask> masks() {
  constexpr WindowUnit kTokens = WindowUnit::hidden_tokens;
  return {{.copies = 1},
          {.copies = 2, .visibility = CopyVisibility::naive},
          {.copies = 3},
          {.copies = 3, .window = 5},
          {.copies = 2, .window = 30},
          {.copies = 2, .window = 4, .chunk = 4},
          {.copies = 2, .window = 4, .chunk = 7},
          {.copies = 3, .window = 6, .unit = kTokens},
          {.copies = 3, .window = 5, .chunk = 7, .unit = kTokens},
          {.pattern = KeyPattern::sink_window, .block = 4, .window_blocks = 2},
          {.copies = 2, .pattern = KeyPattern::strided, .block = 2, .stride_blocks = 3}};
}

TEST(ContextPlan, ReadsExactlyWhatIsSeen) {
  int number = 0;
  for (const AttentionMask& mask : masks()) {
    SCOPED_TRACE(number++);
    for (const int size : {1, 2, 3})
      for (int rank = 0; rank < size; ++rank) {
        const ContextPlan plan = make_context_plan(mask, 48, rank, size);
        ASSERT_EQ(plan.steps.size(), static_cast<size_t>(size - 1));
        for (const ContextStep& step : plan.steps) {
          const Ranges held = context_positions(48, step.from, size);
          std::vector<std::set<int64_t>> read(plan.bands.size());
          for (const KeyPiece& piece : step.received) {
            read[piece.band] = positions_of(piece.positions);
            EXPECT_EQ(static_cast<int64_t>(read[piece.band].size()), piece.count);
            EXPECT_LE(piece.count, plan.largest[piece.band]);
            EXPECT_EQ(static_cast<int64_t>(positions_of(piece.rows).size()), piece.count);
          }
          for (size_t band = 0; band < plan.bands.size(); ++band)
            EXPECT_EQ(read[band], seen_positions(mask, plan.bands[band], plan.own, held))
                << "band " << band << " rank " << rank << " of " << size;
        }
      }
  }
}

// With blocks that pieces cut, or windows, nothing that is seen may be missing.
TEST(ContextPlan, MissesNothingWhenBlocksAreCut) {
  for (const KeyPattern pattern : {KeyPattern::sink_window, KeyPattern::strided})
    for (const int64_t block : {5, 7, 64}) {
      const AttentionMask mask{.pattern = pattern,
                               .block = block,
                               .window_blocks = 2,
                               .stride_blocks = 2,
                               .local_blocks = 2};
      for (int reader = 0; reader < 4; ++reader)
        for (int holder = 0; holder < 4; ++holder) {
          const Ranges queries = context_positions(64, reader, 4);
          const Ranges held = context_positions(64, holder, 4);
          const std::set<int64_t> read = positions_of(positions_read(mask, {0, 1}, queries, held));
          const std::set<int64_t> seen = seen_positions(mask, {0, 1}, queries, held);
          EXPECT_TRUE(std::includes(read.begin(), read.end(), seen.begin(), seen.end()));
        }
    }
}

TEST(ContextPlan, BothSidesAgree) {
  for (const AttentionMask& mask : masks())
    for (int rank = 0; rank < 3; ++rank)
      for (const ContextStep& step : make_context_plan(mask, 48, rank, 3).steps) {
        const ContextPlan other = make_context_plan(mask, 48, step.to, 3);
        const auto match =
            std::find_if(other.steps.begin(), other.steps.end(),
                         [&](const ContextStep& theirs) { return theirs.from == rank; });
        ASSERT_NE(match, other.steps.end());
        ASSERT_EQ(match->received.size(), step.sent.size());
        for (size_t i = 0; i < step.sent.size(); ++i)
          EXPECT_EQ(match->received[i].positions, step.sent[i].positions);
      }
}

// --- balance ---

struct Balance {
  double slowest, fastest;  // pairs of a rank over the mean
};

int64_t pairs_of(const AttentionMask& mask, int64_t positions, int rank, int size) {
  int64_t pairs = 0;
  for (const PositionRange& range : context_positions(positions, rank, size)) {
    const VisiblePairs visible = visible_pairs(mask, range);
    pairs += visible.original + visible.hidden;
  }
  return pairs;
}

/// Work of layers with these masks, one layer each.
Balance balance(const std::vector<AttentionMask>& layers, int64_t positions, int size) {
  std::vector<double> work(static_cast<size_t>(size));
  double total = 0;
  for (const AttentionMask& mask : layers)
    for (int rank = 0; rank < size; ++rank) {
      const auto pairs = static_cast<double>(pairs_of(mask, positions, rank, size));
      work[static_cast<size_t>(rank)] += pairs;
      total += pairs;
    }
  const auto [least, most] = std::minmax_element(work.begin(), work.end());
  return {*most * size / total, *least * size / total};
}

constexpr int64_t kLong = 131072;
const AttentionMask kCausal{};
const AttentionMask kNaive{.copies = 2, .visibility = CopyVisibility::naive};
const AttentionMask kCswa{.copies = 2, .window = 16, .chunk = 32};
const AttentionMask kSwa{.copies = 3, .window = 16};
const AttentionMask kSink{.pattern = KeyPattern::sink_window};
const AttentionMask kStrided{.pattern = KeyPattern::strided};

TEST(ContextBalance, EveryRankIsWithinFivePercentOfTheMean) {
  for (const int size : {2, 3, 4, 8, 16})
    for (const AttentionMask& mask : {kCausal, kNaive, kCswa, kSwa, kStrided})
      for (const int64_t length : {int64_t{4096}, kLong}) {
        // Strided layers see whole blocks: the cut is even where pieces are many strides long.
        if (mask.pattern != KeyPattern::full && length < kLong) continue;
        const int64_t step = 2 * 64 * size;
        const Balance b = balance({mask}, length / step * step, size);
        EXPECT_LE(b.slowest, 1.05) << size << " " << mask.copies << " " << length;
        EXPECT_GE(b.fastest, 0.95) << size << " " << mask.copies << " " << length;
      }
}

// Under a window every query sees the same number of keys, but the first 2048 positions have fewer
// before them: the rank that holds them is done early (12 % at 16 ranks), nobody is late, and the
// layers of a whole LongGen model are within 5 %.
TEST(ContextBalance, NobodyIsLateUnderASinkAndAWindow) {
  for (const int size : {2, 4, 8, 16}) {
    EXPECT_LE(balance({kSink}, kLong, size).slowest, 1.05) << size;
    const Balance model = balance({kSink, kSink, kCausal}, kLong, size);
    EXPECT_LE(model.slowest, 1.05) << size;
    EXPECT_GE(model.fastest, 0.95) << size;
  }
  EXPECT_GE(balance({kSink}, kLong, 4).fastest, 0.95);
  EXPECT_LT(balance({kSink}, kLong, 16).fastest, 0.90);
}

}  // namespace
}  // namespace phalanx::testing
