// The schedules of the CUDA attention kernels, walked on the host: every visible pair of a query
// row and a key is covered once by a visited block, and full blocks hold no other pair. The same
// for the transposed list of the gradients of keys, and for what a masked block shows.
#include "kernels/attention_schedule.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "kernels/cuda/swizzle.h"

namespace phalanx {
namespace {

using Runs = std::vector<PositionRange>;

PositionRuns position_runs(const Runs& runs) {
  PositionRuns result;
  for (const PositionRange& run : runs) result.run[result.count++] = run;
  return result;
}

int64_t positions_of(const Runs& runs) {
  int64_t count = 0;
  for (const PositionRange& run : runs) count += run.size();
  return count;
}

struct ScheduleCase {
  AttentionLayout layout;
  std::vector<int32_t> documents;  // [Sq] or empty

  ScheduleCase(const AttentionMask& mask, const Runs& query_runs, const Runs& key_runs) {
    layout.mask = mask;
    layout.query_copies = layout.key_copies = mask.copies;
    layout.query_runs = position_runs(query_runs);
    layout.key_runs = position_runs(key_runs);
    layout.queries = positions_of(query_runs);
    layout.keys = positions_of(key_runs);
  }
  /// Documents of `length` positions.
  void cut_documents(int64_t length) {
    for (int64_t i = 0; i < layout.query_runs.count; ++i) {
      const PositionRange& run = layout.query_runs.run[i];
      for (int64_t n = run.begin; n < run.end; ++n)
        documents.push_back(static_cast<int32_t>(n / length * length));
    }
  }
};

/// How often each pair (row, slot of the keys, key) was visited, and whether as full and as shown.
struct Visits {
  explicit Visits(const AttentionLayout& layout)
      : keys(layout.key_copies * layout.keys),
        count(static_cast<size_t>(layout.rows() * keys), 0),
        shown(count) {}
  void add(const AttentionLayout& layout, const TileRows& rows, const KeyRows& key_rows) {
    const KeyBlock& block = key_rows.block;
    for (int64_t i = 0; i < rows.count; ++i) {
      const int64_t document = layout.document_of(0, rows.query(layout, i));
      const PositionRange seen =
          block.full ? PositionRange{0, key_rows.count()}
                     : visible_in_block(layout.mask, block, rows.row(layout, i), document);
      for (int64_t key = 0; key < key_rows.count(); ++key) {
        const int64_t at = (rows.first + i) * keys +
                           (block.copy - layout.first_key_copy) * layout.keys + key_rows.row + key;
        ++count[static_cast<size_t>(at)];
        if (key >= seen.begin && key < seen.end) shown[static_cast<size_t>(at)] = 1;
      }
    }
  }
  int64_t keys;
  std::vector<int> count, shown;
};

AttentionRow key_row(const AttentionLayout& layout, int64_t slot, int64_t key) {
  for (int64_t i = 0; i < layout.key_runs.count; ++i) {
    const PositionRange& run = layout.key_runs.run[i];
    if (key < run.size()) return {run.begin + key, layout.first_key_copy + slot};
    key -= run.size();
  }
  return {-1, -1};
}

AttentionRow query_row(const AttentionLayout& layout, int64_t row) {
  int64_t query = row / layout.rows_per_position();
  const int64_t slot = row % layout.rows_per_position();
  for (int64_t i = 0; i < layout.query_runs.count; ++i) {
    const PositionRange& run = layout.query_runs.run[i];
    if (query < run.size())
      return {run.begin + query, layout.first_query_copy + slot / layout.heads_per_group};
    query -= run.size();
  }
  return {-1, -1};
}

/// Pairs on which the visits disagree with the rule.
int64_t wrong_pairs(const AttentionLayout& layout, const Visits& visits) {
  int64_t wrong = 0;
  for (int64_t row = 0; row < layout.rows(); ++row) {
    const int64_t document = layout.document_of(0, row / layout.rows_per_position());
    for (int64_t key = 0; key < visits.keys; ++key) {
      const bool visible = layout.mask.visible(
          query_row(layout, row), key_row(layout, key / layout.keys, key % layout.keys), document);
      const auto at = static_cast<size_t>(row * visits.keys + key);
      wrong += visits.count[at] > 1 || (visits.shown[at] != 0) != visible ? 1 : 0;
    }
  }
  return wrong;
}

Visits forward_visits(const AttentionLayout& layout, int64_t tile_rows, int64_t tile_keys) {
  Visits visits(layout);
  for (int64_t number = 0; number < num_query_tiles(layout, tile_rows); ++number) {
    const TileRows rows = query_tile(layout, 0, number, tile_rows);
    EXPECT_LE(rows.count, tile_rows);
    VisitedKeys keys(layout, rows.tile, tile_keys);
    KeyRows block;
    while (keys.next(layout, rows.tile, block)) {
      EXPECT_LE(block.count(), tile_keys);
      visits.add(layout, rows, block);
    }
  }
  return visits;
}

Visits transposed_visits(const AttentionLayout& layout, int64_t tile_rows, int64_t tile_keys) {
  Visits visits(layout);
  std::vector<int> tiled(static_cast<size_t>(layout.key_copies * layout.keys), 0);
  for (int64_t slot = 0; slot < layout.key_copies; ++slot) {
    for (int64_t number = 0; number < num_key_tiles(layout, tile_keys); ++number) {
      KeyRows keys = key_tile(layout, slot, number, tile_keys);
      EXPECT_LE(keys.count(), tile_keys);
      for (int64_t i = 0; i < keys.count(); ++i)
        ++tiled[static_cast<size_t>(slot * layout.keys + keys.row + i)];
      VisitingQueries queries(layout, keys.block, tile_rows);
      TileRows rows;
      while (queries.next(layout, 0, keys.block, rows, keys.block.full))
        visits.add(layout, rows, keys);
    }
  }
  for (const int count : tiled) EXPECT_EQ(count, 1);  // or some gradient is never written
  return visits;
}

std::vector<AttentionMask> schedule_masks() {
  constexpr int64_t kEndless = AttentionMask::kNoChunk;
  std::vector<AttentionMask> masks;
  for (const int64_t copies : {1, 2, 3, 4}) {
    for (const int64_t window : {int64_t{1}, int64_t{5}, int64_t{16}, kEndless})
      for (const int64_t chunk : {int64_t{4}, int64_t{7}, int64_t{32}, kEndless})
        for (const WindowUnit unit : {WindowUnit::positions, WindowUnit::hidden_tokens})
          masks.push_back({.copies = copies, .window = window, .chunk = chunk, .unit = unit});
    for (const CopyVisibility visibility : {CopyVisibility::local, CopyVisibility::naive}) {
      AttentionMask sparse{.copies = copies, .visibility = visibility, .window = 4, .chunk = 8};
      masks.push_back(sparse);
      for (const int64_t block : {6, 16, 24}) {
        sparse.block = block;
        sparse.pattern = KeyPattern::sink_window;
        sparse.window_blocks = 2;
        masks.push_back(sparse);
        sparse.pattern = KeyPattern::strided;
        sparse.stride_blocks = 3;
        sparse.local_blocks = 2;
        masks.push_back(sparse);
      }
    }
  }
  return masks;
}

std::vector<ScheduleCase> schedule_cases(const AttentionMask& mask) {
  const Runs whole{{0, 61}};
  std::vector<ScheduleCase> cases;
  cases.emplace_back(mask, whole, whole);
  cases.emplace_back(mask, whole, whole);
  cases.back().layout.heads_per_group = 3;
  cases.emplace_back(mask, whole, whole);
  cases.back().cut_documents(23);
  cases.emplace_back(mask, Runs{{20, 37}, {70, 98}}, Runs{{0, 9}, {9, 9}, {17, 33}, {68, 80}});
  cases.emplace_back(mask, Runs{{3, 33}}, Runs{{30, 75}});
  cases.back().cut_documents(11);
  cases.emplace_back(mask, whole, whole);
  cases.back().layout.query_copies = 1;
  cases.back().layout.first_query_copy = mask.copies - 1;
  cases.emplace_back(mask, Runs{{20, 37}, {70, 98}}, Runs{{11, 40}, {60, 80}});
  cases.back().layout.key_copies = 1;
  if (mask.copies == 1) return cases;
  cases.emplace_back(mask, Runs{{20, 37}, {70, 98}}, Runs{{11, 40}, {60, 80}});
  cases.back().layout.key_copies = mask.copies - 1;
  cases.back().layout.first_key_copy = 1;
  cases.back().cut_documents(19);
  return cases;
}

struct TileSizes {
  int64_t rows, keys;
};

class AttentionSchedule : public ::testing::TestWithParam<TileSizes> {};

TEST_P(AttentionSchedule, EveryVisiblePairIsCoveredOnce) {
  const auto [tile_rows, tile_keys] = GetParam();
  int number = 0;
  for (const AttentionMask& mask : schedule_masks()) {
    for (ScheduleCase& c : schedule_cases(mask)) {
      if (!c.documents.empty()) c.layout.document_start = c.documents.data();
      const AttentionLayout& layout = c.layout;
      EXPECT_EQ(wrong_pairs(layout, forward_visits(layout, tile_rows, tile_keys)), 0) << number;
      EXPECT_EQ(wrong_pairs(layout, transposed_visits(layout, tile_rows, tile_keys)), 0) << number;
      if (HasFailure())
        FAIL() << "mask " << number << ": K " << mask.copies << " W " << mask.window;
    }
    ++number;
  }
}

INSTANTIATE_TEST_SUITE_P(Tiles, AttentionSchedule,
                         ::testing::Values(TileSizes{1, 32}, TileSizes{32, 1}, TileSizes{16, 16},
                                           TileSizes{64, 16}, TileSizes{16, 64}, TileSizes{128, 64},
                                           TileSizes{64, 128}),
                         [](const auto& size) {
                           return std::to_string(size.param.rows) + "x" +
                                  std::to_string(size.param.keys);
                         });

// Work stays proportional to what is seen: no tile of a band or a sparse pattern is offered to all.
TEST(AttentionScheduleWork, TransposedListIsAsShortAsTheForwardOne) {
  const Runs whole{{0, 4096}};
  for (const AttentionMask& mask :
       {AttentionMask{.copies = 3, .window = 16, .chunk = 32}, AttentionMask{.copies = 2},
        AttentionMask{.pattern = KeyPattern::sink_window, .window_blocks = 4},
        AttentionMask{.copies = 2, .pattern = KeyPattern::strided, .stride_blocks = 16}}) {
    const ScheduleCase c(mask, whole, whole);
    int64_t forward = 0;
    for (int64_t number = 0; number < num_query_tiles(c.layout, 64); ++number) {
      const TileRows rows = query_tile(c.layout, 0, number, 64);
      VisitedKeys keys(c.layout, rows.tile, 64);
      KeyRows block;
      while (keys.next(c.layout, rows.tile, block)) ++forward;
    }
    int64_t transposed = 0;
    for (int64_t slot = 0; slot < mask.copies; ++slot) {
      for (int64_t number = 0; number < num_key_tiles(c.layout, 64); ++number) {
        KeyRows keys = key_tile(c.layout, slot, number, 64);
        VisitingQueries queries(c.layout, keys.block, 64);
        TileRows rows;
        while (queries.next(c.layout, 0, keys.block, rows, keys.block.full)) ++transposed;
      }
    }
    // The band's blocks start where the tile's first row needs them, the grid's tiles do not.
    EXPECT_LE(transposed, forward + 2 * 64 * mask.copies * mask.copies) << mask.copies;
    EXPECT_GE(transposed, forward * 9 / 10) << mask.copies;
  }
}

TEST(AttentionScheduleRows, OutputRowsAreThoseOfTheLayout) {
  AttentionLayout layout{.batch = 3, .groups = 2, .queries = 11, .keys = 11, .head_dim = 4};
  for (const int64_t copies : {1, 3}) {
    for (const int64_t heads : {1, 2, 5}) {
      layout.query_copies = copies;
      layout.heads_per_group = heads;
      std::set<int64_t> indices;
      for (int64_t pair = 0; pair < layout.num_pairs(); ++pair) {
        for (int64_t first = 0; first < layout.rows(); ++first) {
          const OutputRows rows(layout, pair, first);
          for (uint32_t i = 0; first + i < layout.rows(); ++i)
            ASSERT_EQ(rows.index(layout, i), layout.output_index(pair, first + i));
          indices.insert(layout.output_index(pair, first));
        }
      }
      // Each row has a place of its own.
      EXPECT_EQ(static_cast<int64_t>(indices.size()), layout.num_pairs() * layout.rows());
      EXPECT_EQ(*indices.rbegin(), (layout.num_pairs() * layout.rows() - 1) * layout.head_dim);
    }
  }
}

// Shared memory has 32 banks of 4 bytes; 8 rows of 16 bytes are read at once.
template <int kWidth>
void check_swizzle() {
  constexpr int kChunks = kWidth / kChunkValues;
  constexpr int kRows = 128;
  std::set<int> places;
  for (int row = 0; row < kRows; ++row) {
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int place = swizzled<kWidth>(row, chunk);
      EXPECT_EQ(place / kWidth, row);
      EXPECT_EQ(place % kChunkValues, 0);
      places.insert(place);
    }
  }
  EXPECT_EQ(places.size(), static_cast<size_t>(kRows * kChunks));
  for (int row = 0; row < kRows; row += 8) {
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      std::set<int> banks;
      for (int i = 0; i < 8; ++i) banks.insert(swizzled<kWidth>(row + i, chunk) / kChunkValues % 8);
      EXPECT_EQ(banks.size(), 8U) << kWidth << " " << row << " " << chunk;
    }
  }
}

TEST(AttentionSwizzle, EveryChunkHasAPlaceAndNoBankIsReadTwice) {
  check_swizzle<64>();
  check_swizzle<96>();
  check_swizzle<128>();
}

}  // namespace
}  // namespace phalanx
