// The mask rule and the tile schedule derived from it, against the predicates of the papers.
#include "kernels/attention_mask.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/attention_tiles.h"

namespace phalanx {
namespace {

constexpr int64_t kEndless = AttentionMask::kNoChunk;
constexpr int64_t kCopies[] = {1, 2, 3, 5};
constexpr int64_t kWindows[] = {1, 4, 16};
constexpr int64_t kChunks[] = {1, 4, 32, kEndless};
constexpr WindowUnit kUnits[] = {WindowUnit::positions, WindowUnit::hidden_tokens};

// The predicate of PHD-SWA and CSWA, spelled out from Eq. 2: key copy i, position m, query copy j,
// position n; copies count from 1, 1 is the original.
bool paper_visible(int64_t i, int64_t m, int64_t j, int64_t n, int64_t window, int64_t chunk) {
  if (i == 1) return m <= n;
  if (j == 1) return false;
  if (m == n) return i <= j;
  if (m > n || n - m >= window) return false;
  return m / chunk == n / chunk;
}

// The other reading of the unit: window and chunk count hidden tokens, copies interleaved.
bool hidden_token_visible(int64_t i, int64_t m, int64_t j, int64_t n, const AttentionMask& mask) {
  if (i == 1) return m <= n;
  if (j == 1) return false;
  if (m == n) return i <= j;
  const int64_t key = m * (mask.copies - 1) + i - 2;
  const int64_t query = n * (mask.copies - 1) + j - 2;
  if (m > n || query - key >= mask.window) return false;
  return key / mask.chunk == query / mask.chunk;
}

template <class Visit>
void for_each_pair(int64_t positions, int64_t copies, Visit visit) {
  for (int64_t n = 0; n < positions; ++n)
    for (int64_t j = 0; j < copies; ++j)
      for (int64_t m = 0; m < positions; ++m)
        for (int64_t i = 0; i < copies; ++i) visit(AttentionRow{n, j}, AttentionRow{m, i});
}

std::vector<AttentionMask> local_masks() {
  std::vector<AttentionMask> masks;
  for (const int64_t copies : kCopies)
    for (const int64_t window : kWindows)
      for (const int64_t chunk : kChunks)
        for (const WindowUnit unit : kUnits)
          masks.push_back({.copies = copies, .window = window, .chunk = chunk, .unit = unit});
  return masks;
}

bool same_mask(const AttentionMask& a, const AttentionMask& b, int64_t positions) {
  bool same = true;
  for_each_pair(positions, a.copies, [&](AttentionRow query, AttentionRow key) {
    same = same && a.visible(query, key) == b.visible(query, key);
  });
  return same;
}

TEST(AttentionMask, EqualsThePredicateOfThePaper) {
  for (const AttentionMask& mask : local_masks()) {
    int64_t wrong = 0;
    for_each_pair(70, mask.copies, [&](AttentionRow query, AttentionRow key) {
      const bool expected = mask.unit == WindowUnit::positions
                                ? paper_visible(key.copy + 1, key.position, query.copy + 1,
                                                query.position, mask.window, mask.chunk)
                                : hidden_token_visible(key.copy + 1, key.position, query.copy + 1,
                                                       query.position, mask);
      wrong += mask.visible(query, key) != expected ? 1 : 0;
    });
    EXPECT_EQ(wrong, 0) << mask.copies << " " << mask.window << " " << mask.chunk;
  }
}

TEST(AttentionMask, NaiveIsCausalOverAllRows) {
  for (const int64_t copies : kCopies) {
    const AttentionMask mask{.copies = copies, .visibility = CopyVisibility::naive};
    for_each_pair(20, copies, [&](AttentionRow query, AttentionRow key) {
      EXPECT_EQ(mask.visible(query, key),
                key.position * copies + key.copy <= query.position * copies + query.copy);
    });
  }
}

TEST(AttentionMask, BasePhdSeesPositionPlusCopyKeys) {
  for (const int64_t copies : kCopies) {
    const AttentionMask mask{.copies = copies};
    std::vector<int64_t> seen(static_cast<size_t>(40 * copies));
    for_each_pair(40, copies, [&](AttentionRow query, AttentionRow key) {
      const int64_t row = query.position * copies + query.copy;
      seen[static_cast<size_t>(row)] += mask.visible(query, key) ? 1 : 0;
    });
    for (int64_t row = 0; row < 40 * copies; ++row) {  // n + (j - 1), both counted from 1
      EXPECT_EQ(seen[static_cast<size_t>(row)], row / copies + 1 + row % copies);
    }
  }
}

TEST(AttentionMask, Nesting) {
  for (const int64_t copies : kCopies) {
    const AttentionMask phd{.copies = copies};
    const AttentionMask window_one{.copies = copies, .window = 1, .chunk = 32};
    const AttentionMask chunk_one{.copies = copies, .window = 16, .chunk = 1};
    EXPECT_TRUE(same_mask(phd, window_one, 50));
    EXPECT_TRUE(same_mask(phd, chunk_one, 50));
    const AttentionMask swa{.copies = copies, .window = 16};
    const AttentionMask long_chunk{.copies = copies, .window = 16, .chunk = 50};
    const AttentionMask short_chunk{.copies = copies, .window = 16, .chunk = 32};
    EXPECT_TRUE(same_mask(swa, long_chunk, 50));
    EXPECT_EQ(same_mask(swa, short_chunk, 50), copies == 1);
    AttentionMask tokens = short_chunk;
    tokens.unit = WindowUnit::hidden_tokens;
    EXPECT_EQ(same_mask(short_chunk, tokens, 50), copies <= 2);
  }
}

// Extra keys of the last copy, far from chunk starts.
TEST(AttentionMask, UnitsGiveTheKeyCountsOfThePaper) {
  const auto extra_keys = [](int64_t copies, WindowUnit unit) {
    const AttentionMask mask{.copies = copies, .window = 16, .unit = unit};
    int64_t count = 0;
    for (int64_t m = 0; m < 40; ++m)
      for (int64_t i = 1; i < copies; ++i) count += mask.visible({40, copies - 1}, {m, i}) ? 1 : 0;
    return count;
  };
  EXPECT_EQ(extra_keys(3, WindowUnit::positions), 30);
  EXPECT_EQ(extra_keys(3, WindowUnit::hidden_tokens), 14);
  EXPECT_EQ(extra_keys(5, WindowUnit::positions), 60);
  EXPECT_EQ(extra_keys(5, WindowUnit::hidden_tokens), 12);
}

TEST(AttentionMask, LongGenPatterns) {
  const AttentionMask sink{.pattern = KeyPattern::sink_window};
  const AttentionMask strided{.pattern = KeyPattern::strided};
  for (int64_t bq = 0; bq < 200; ++bq) {
    for (int64_t bk = 0; bk < 200; ++bk) {
      const int64_t n = bq * 64 + 17;
      const int64_t m = bk * 64 + (bq + bk) % 64;
      const bool causal = m <= n;
      EXPECT_EQ(sink.original_visible(n, m), causal && (bk == 0 || bq - bk < 32));
      EXPECT_EQ(strided.original_visible(n, m), causal && (bk % 64 == 0 || bk == bq));
    }
  }
  // One sink block and 31 whole blocks of the window; the last block up to the query itself.
  int64_t kept = 0;
  for (int64_t m = 0; m < 131072; ++m) kept += sink.original_visible(131071, m) ? 1 : 0;
  EXPECT_EQ(kept, 64 + 2048);
}

TEST(AttentionMask, FirstHiddenPositionIsExact) {
  for (const AttentionMask& mask : local_masks()) {
    for (int64_t n = 0; n < 80; ++n) {
      int64_t first = n;
      for (int64_t m = n; m >= 0; --m)
        for (int64_t j = 1; j < mask.copies; ++j)
          for (int64_t i = 1; i < mask.copies; ++i)
            if (mask.visible({n, j}, {m, i})) first = m;
      EXPECT_EQ(mask.first_hidden_position(n), first)
          << mask.copies << " " << mask.window << " " << mask.chunk << " at " << n;
    }
  }
}

TEST(AttentionTiles, VisibleKeysEqualTheRule) {
  std::vector<AttentionMask> masks = local_masks();
  masks.push_back({.copies = 3, .visibility = CopyVisibility::naive});
  for (const AttentionMask& mask : masks) {
    for (const int64_t document : {0, 5, 37}) {
      int64_t wrong = 0;
      for_each_pair(70, mask.copies, [&](AttentionRow query, AttentionRow key) {
        const PositionRange range = visible_keys(mask, query, key.copy, document);
        const bool inside = key.position >= range.begin && key.position < range.end;
        wrong += inside != mask.visible(query, key, document) ? 1 : 0;
      });
      EXPECT_EQ(wrong, 0) << mask.copies << " " << mask.window << " " << mask.chunk;
    }
  }
}

constexpr int64_t kBlock = 16;
constexpr int64_t kRows = 16;

// Tiles of kRows rows of [positions, copies].
template <class Visit>
void for_each_tile(int64_t positions, int64_t copies, Visit visit) {
  for (int64_t row = 0; row < positions * copies; row += kRows) {
    const int64_t last = std::min(row + kRows, positions * copies) - 1;
    QueryTile tile{.first_position = row / copies, .last_position = last / copies};
    tile.first_copy = tile.first_position == tile.last_position ? row % copies : 0;
    tile.last_copy = tile.first_position == tile.last_position ? last % copies : copies - 1;
    visit(tile, row, last);
  }
}

// Every visible pair lies in exactly one visited block, and `full` blocks hold no other pair.
TEST(AttentionTiles, BlocksCoverTheRuleOnce) {
  std::vector<AttentionMask> masks = local_masks();
  for (const int64_t copies : {1, 2, 3}) {
    masks.push_back({.copies = copies, .visibility = CopyVisibility::naive});
    masks.push_back(
        {.copies = copies, .pattern = KeyPattern::sink_window, .block = 8, .window_blocks = 2});
    masks.push_back({.copies = copies,
                     .visibility = CopyVisibility::naive,
                     .pattern = KeyPattern::strided,
                     .block = 10,
                     .stride_blocks = 3});
  }
  constexpr int64_t kPositions = 70;
  for (const AttentionMask& mask : masks) {
    int64_t wrong = 0;
    for_each_tile(kPositions, mask.copies, [&](const QueryTile& tile, int64_t row, int64_t last) {
      std::vector<int> visits(static_cast<size_t>(mask.copies * kPositions), 0);
      std::vector<int> full(visits);
      for_each_key_block(mask, tile, {0, kPositions}, kBlock, [&](const KeyBlock& block) {
        for (int64_t m = block.begin; m < block.end; ++m) {
          ++visits[static_cast<size_t>(block.copy * kPositions + m)];
          full[static_cast<size_t>(block.copy * kPositions + m)] = block.full ? 1 : 0;
        }
      });
      for (int64_t query = row; query <= last; ++query) {
        for (int64_t key = 0; key < mask.copies * kPositions; ++key) {
          const bool visible = mask.visible({query / mask.copies, query % mask.copies},
                                            {key % kPositions, key / kPositions});
          const int count = visits[static_cast<size_t>(key)];
          wrong += count > 1 || (visible && count != 1) ? 1 : 0;
          wrong += !visible && full[static_cast<size_t>(key)] == 1 ? 1 : 0;
        }
      }
    });
    EXPECT_EQ(wrong, 0) << mask.copies << " " << mask.window << " " << mask.chunk;
  }
}

// Pairs (query row, key) inside visited blocks: what the kernels' work is proportional to.
int64_t visited_pairs(const AttentionMask& mask, int64_t positions) {
  int64_t pairs = 0;
  for_each_tile(positions, mask.copies, [&](const QueryTile& tile, int64_t row, int64_t last) {
    for_each_key_block(mask, tile, {0, positions}, kBlock, [&](const KeyBlock& block) {
      pairs += (last - row + 1) * (block.end - block.begin);
    });
  });
  return pairs;
}

TEST(AttentionTiles, WorkIsKTimesVanilla) {
  constexpr int64_t kPositions = 2048;
  const int64_t vanilla = visited_pairs({}, kPositions);
  const int64_t useful = kPositions * (kPositions + 1) / 2;
  EXPECT_LE(vanilla, useful + kPositions * (kBlock + kRows) / 2);
  for (const int64_t copies : {2, 3, 5}) {
    const AttentionMask mask{.copies = copies, .window = 16, .chunk = 32};
    // Beyond K * vanilla: per row and hidden copy the window and the positions of its tile.
    const int64_t band = copies * kPositions * (copies - 1) * (16 + kRows / copies + 1);
    EXPECT_LE(visited_pairs(mask, kPositions), copies * vanilla + band);
    EXPECT_LT(visited_pairs(mask, kPositions), copies * vanilla * 3 / 2);
    const AttentionMask naive{.copies = copies, .visibility = CopyVisibility::naive};
    EXPECT_GT(visited_pairs(naive, kPositions), copies * copies * vanilla * 9 / 10);
  }
}

TEST(AttentionTiles, SparsePatternsSkipBlocks) {
  constexpr int64_t kPositions = 4096;
  const AttentionMask sink{.pattern = KeyPattern::sink_window, .block = 64, .window_blocks = 4};
  EXPECT_LE(visited_pairs(sink, kPositions), kPositions * (1 + 4) * 64);
  const AttentionMask strided{.pattern = KeyPattern::strided, .block = 64, .stride_blocks = 16};
  EXPECT_LE(visited_pairs(strided, kPositions), kPositions * (4096 / 64 / 16 + 1) * 64);
}

TEST(AttentionTiles, DocumentsSkipBlocksAndFullBlocksAreFull) {
  const QueryTile tile{
      .first_position = 100, .last_position = 103, .first_document = 64, .last_document = 64};
  std::vector<KeyBlock> blocks;
  for_each_key_block({}, tile, {0, 200}, kBlock,
                     [&](const KeyBlock& block) { blocks.push_back(block); });
  ASSERT_EQ(blocks.size(), 3U);  // 64..79, 80..95, 96..111
  EXPECT_EQ(blocks[0].begin, 64);
  EXPECT_TRUE(blocks[0].full);
  EXPECT_TRUE(blocks[1].full);
  EXPECT_FALSE(blocks[2].full);
  EXPECT_EQ(blocks[2].end, 112);
}

}  // namespace
}  // namespace phalanx
