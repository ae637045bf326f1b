// What the blocks of a CUDA attention kernel work on: the key blocks that a tile of query rows
// sees, and, for the gradients of keys, tiles of keys and the query tiles that see them. Plain
// index arithmetic, tested exhaustively on the host.
#pragma once

#include "kernels/attention_layout.h"

namespace phalanx {

/// A block of keys in memory: rows [row, row + count) of plane `slot` of k and v.
struct KeyRows {
  KeyBlock block;
  int64_t row = 0;

  constexpr int64_t count() const { return block.end - block.begin; }
};

/// The key blocks that a query tile visits, run by run of the keys present.
class VisitedKeys {
 public:
  constexpr VisitedKeys(const AttentionLayout& layout, const QueryTile& tile, int64_t block_size)
      : blocks_(layout.mask, tile, present(layout, 0), block_size), block_size_(block_size) {
    shift_ = layout.key_runs.run[0].begin;
  }

  constexpr bool next(const AttentionLayout& layout, const QueryTile& tile, KeyRows& keys) {
    while (!blocks_.next(layout.mask, tile, keys.block)) {
      if (++run_ >= layout.key_runs.count) return false;
      const PositionRange run = layout.key_runs.run[run_];
      shift_ += run.begin - layout.key_runs.run[run_ - 1].end;
      blocks_ = KeyBlocks(layout.mask, tile, present(layout, run_), block_size_);
    }
    keys.row = keys.block.begin - shift_;
    return true;
  }

 private:
  static constexpr PresentKeys present(const AttentionLayout& layout, int64_t run) {
    return {layout.key_runs.run[run], layout.first_key_copy,
            layout.first_key_copy + layout.key_copies};
  }
  KeyBlocks blocks_;
  int64_t block_size_;
  int64_t run_ = 0;
  int64_t shift_ = 0;  // from rows of [Sk] to positions
};

/// Key tiles of a run lie on a grid that no tile crosses: multiples of tile_keys, restarted in each
/// block of a pattern, so that the rows that see a key of the tile see its whole pattern block.
struct KeyGrid {
  int64_t period;  // positions after which the grid restarts
  int64_t tile_keys;
  int64_t tiles_per_period;

  constexpr KeyGrid(const AttentionMask& mask, int64_t tile)
      : period(mask.pattern == KeyPattern::full ? tile : mask.block),
        tile_keys(tile),
        tiles_per_period((period + tile - 1) / tile) {}
  constexpr int64_t tile_at(int64_t position) const {
    return position / period * tiles_per_period + position % period / tile_keys;
  }
  constexpr PositionRange positions(int64_t tile) const {
    const int64_t origin = tile / tiles_per_period * period;
    const int64_t begin = origin + tile % tiles_per_period * tile_keys;
    return {begin, std::min(begin + tile_keys, origin + period)};
  }
  constexpr int64_t num_tiles(PositionRange run) const {
    return run.size() == 0 ? 0 : tile_at(run.end - 1) - tile_at(run.begin) + 1;
  }
};

/// Key tiles of one copy of one pair.
constexpr int64_t num_key_tiles(const AttentionLayout& layout, int64_t tile_keys) {
  const KeyGrid grid(layout.mask, tile_keys);
  int64_t tiles = 0;
  for (int64_t i = 0; i < layout.key_runs.count; ++i)
    tiles += grid.num_tiles(layout.key_runs.run[i]);
  return tiles;
}

constexpr KeyRows key_tile(const AttentionLayout& layout, int64_t slot, int64_t number,
                           int64_t tile_keys) {
  const KeyGrid grid(layout.mask, tile_keys);
  int64_t row = 0;
  for (int64_t i = 0; i < layout.key_runs.count; ++i) {
    const PositionRange run = layout.key_runs.run[i];
    const int64_t tiles = grid.num_tiles(run);
    if (number < tiles) {
      const PositionRange cell = grid.positions(grid.tile_at(run.begin) + number);
      const int64_t begin = std::max(cell.begin, run.begin);
      const int64_t end = std::min(cell.end, run.end);
      return {{layout.first_key_copy + slot, begin, end, false}, row + begin - run.begin};
    }
    number -= tiles;
    row += run.size();
  }
  return {};
}

/// The last position whose queries may see a key of the tile `keys`, documents aside.
constexpr int64_t last_query_position(const AttentionMask& mask, const KeyBlock& keys) {
  constexpr int64_t kForever = std::numeric_limits<int64_t>::max();
  if (mask.visibility == CopyVisibility::naive || keys.copy == 0) {
    const int64_t block = keys.begin / mask.block;
    if (mask.pattern == KeyPattern::sink_window && block >= mask.sink_blocks)
      return (block + mask.window_blocks) * mask.block - 1;
    if (mask.pattern == KeyPattern::strided && block % mask.stride_blocks != 0)
      return (block + mask.local_blocks) * mask.block - 1;
    return kForever;
  }
  const int64_t scale = mask.unit == WindowUnit::positions ? 1 : mask.copies - 1;
  const int64_t token = (keys.end - 1) * scale + (scale == 1 ? 0 : keys.copy - 1);
  const int64_t by_window = mask.window > kForever - token ? kForever : token + mask.window - 1;
  const int64_t chunk_begin = token / mask.chunk * mask.chunk;
  const int64_t by_chunk =
      mask.chunk > kForever - chunk_begin ? kForever : chunk_begin + mask.chunk - 1;
  return std::max(keys.end - 1, std::min(by_window, by_chunk) / scale);
}

/// The query tiles that see a tile of keys, in ascending order; `rows` of which see all its keys if
/// `full`. The transposed VisitedKeys.
class VisitingQueries {
 public:
  constexpr VisitingQueries(const AttentionLayout& layout, const KeyBlock& keys, int64_t tile_rows)
      : tile_rows_(tile_rows), last_position_(last_query_position(layout.mask, keys)) {
    begin_run(layout, keys);
  }

  constexpr bool next(const AttentionLayout& layout, int64_t pair, const KeyBlock& keys,
                      TileRows& rows, bool& full) {
    while (run_ < layout.query_runs.count) {
      const PositionRange run = layout.query_runs.run[run_];
      while (tile_ < end_tile_) {
        rows = tile_of_run(layout, pair, run, first_query_, tile_++, tile_rows_);
        if (rows.tile.first_document >= keys.end) return false;  // so it is from here on
        const PatternCover cover =
            block_cover(layout.mask, rows.tile, keys.copy, {keys.begin, keys.end});
        full = cover.all;
        if (cover.some) return true;
      }
      first_query_ += run.size();
      ++run_;
      begin_run(layout, keys);
    }
    return false;
  }

 private:
  constexpr void begin_run(const AttentionLayout& layout, const KeyBlock& keys) {
    if (run_ >= layout.query_runs.count) return;
    const PositionRange run = layout.query_runs.run[run_];
    const int64_t begin = std::max(run.begin, keys.begin);
    const int64_t end = std::min(run.end - 1, last_position_) + 1;
    const int64_t per_position = layout.rows_per_position();
    tile_ = (begin - run.begin) * per_position / tile_rows_;
    end_tile_ =
        end > begin ? ((end - run.begin) * per_position + tile_rows_ - 1) / tile_rows_ : tile_;
  }

  int64_t tile_rows_;
  int64_t last_position_;
  int64_t run_ = 0;
  int64_t first_query_ = 0;  // of the run, along [Sq]
  int64_t tile_ = 0, end_tile_ = 0;
};

/// Positions [begin, end) of the tile `keys` that a row sees, counted from its first key; the
/// pattern block of the keys is one.
constexpr PositionRange visible_in_block(const AttentionMask& mask, const KeyBlock& keys,
                                         AttentionRow row, int64_t document) {
  const bool patterned = mask.pattern != KeyPattern::full &&
                         (keys.copy == 0 || mask.visibility == CopyVisibility::naive);
  if (patterned && !mask.block_visible(row.position / mask.block, keys.begin / mask.block))
    return {0, 0};
  const PositionRange range = visible_keys(mask, row, keys.copy, document);
  return {std::max(range.begin, keys.begin) - keys.begin,
          std::min(range.end, keys.end) - keys.begin};
}

}  // namespace phalanx
