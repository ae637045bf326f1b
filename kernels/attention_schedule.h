// What the blocks of a CUDA attention kernel work on: tiles of query rows and the key blocks they
// see, and, for the gradients of keys, tiles of keys and the query tiles that see them. Plain
// index arithmetic on kernel arguments, tested exhaustively on the host.
#pragma once

#include "kernels/attention_tiles.h"

namespace phalanx {

/// Runs of positions as a kernel's argument.
struct PositionRuns {
  static constexpr int64_t kCapacity =
      96;  // two lists fit the 4 KiB that kernel arguments may have
  int64_t count = 0;
  PositionRange run[kCapacity] = {};
};

/// Sizes, mask and positions of one call. Rows are those of [Sq, Kq*R] of a pair (sequence, group):
/// all copies and heads of a position are neighbours and share one pass over original keys.
struct AttentionLayout {
  int64_t batch = 1, groups = 1;
  int64_t queries = 0, keys = 0;  // positions: Sq, Sk
  int64_t head_dim = 0;
  int64_t query_copies = 1, first_query_copy = 0, heads_per_group = 1;
  int64_t key_copies = 1, first_key_copy = 0;
  double scale = 1.0;
  /// [B, Sq] or null. Starts never decrease along a sequence: documents do not interleave.
  const int32_t* document_start = nullptr;
  AttentionMask mask{};
  PositionRuns query_runs{}, key_runs{};

  constexpr int64_t rows_per_position() const { return query_copies * heads_per_group; }
  constexpr int64_t rows() const { return queries * rows_per_position(); }
  constexpr int64_t num_pairs() const { return batch * groups; }

  /// First element of out or dout [Sq, B, Kq, A*D] of row `row` of a pair.
  constexpr int64_t output_index(int64_t pair, int64_t row) const {
    const int64_t slot = row % rows_per_position();
    const int64_t position_row =
        (row / rows_per_position() * batch + pair / groups) * query_copies + slot / heads_per_group;
    const int64_t head = pair % groups * heads_per_group + slot % heads_per_group;
    return (position_row * groups * heads_per_group + head) * head_dim;
  }
  /// First element of k or v at (slot of [Kk], pair, row of [Sk]).
  constexpr int64_t key_index(int64_t slot, int64_t pair, int64_t row) const {
    return ((slot * num_pairs() + pair) * keys + row) * head_dim;
  }
  constexpr int64_t document_of(int64_t pair, int64_t query) const {
    return document_start == nullptr ? 0 : document_start[pair / groups * queries + query];
  }
};

/// Where rows first, first + 1, ... of a pair lie in out or dout. As output_index, but with one
/// division of 64-bit numbers for all of them, because those are slow on a GPU.
class OutputRows {
 public:
  constexpr OutputRows(const AttentionLayout& layout, int64_t pair, int64_t first)
      : query_(first / layout.rows_per_position()),
        pair_(pair),
        slot_(static_cast<uint32_t>(first - query_ * layout.rows_per_position())) {}

  constexpr int64_t index(const AttentionLayout& layout, uint32_t i) const {
    const auto per_position = static_cast<uint32_t>(layout.rows_per_position());
    const auto per_group = static_cast<uint32_t>(layout.heads_per_group);
    const uint32_t further = (slot_ + i) / per_position;
    const uint32_t slot = slot_ + i - further * per_position;
    const uint32_t copy = slot / per_group;
    const auto pair = static_cast<uint32_t>(pair_);
    const uint32_t sequence = pair / static_cast<uint32_t>(layout.groups);
    const int64_t group = pair - sequence * static_cast<uint32_t>(layout.groups);
    const int64_t row = ((query_ + further) * layout.batch + sequence) * layout.query_copies + copy;
    const int64_t heads = layout.groups * layout.heads_per_group;
    return (row * heads + group * per_group + slot - copy * per_group) * layout.head_dim;
  }

 private:
  int64_t query_;
  int64_t pair_;
  uint32_t slot_;
};

/// Consecutive rows of one pair, all in one run of positions.
struct TileRows {
  int64_t first = 0;  // along [Sq * Kq * R]
  int64_t count = 0;
  int64_t shift = 0;  // position = row / rows_per_position + shift
  QueryTile tile;

  /// What row first + i is.
  constexpr AttentionRow row(const AttentionLayout& layout, int64_t i) const {
    const int64_t per_position = layout.rows_per_position();
    return {(first + i) / per_position + shift,
            layout.first_query_copy + (first + i) % per_position / layout.heads_per_group};
  }
  constexpr int64_t query(const AttentionLayout& layout, int64_t i) const {
    return (first + i) / layout.rows_per_position();
  }
};

/// Tile `number` of the run that begins at query `first_query` of [Sq].
constexpr TileRows tile_of_run(const AttentionLayout& layout, int64_t pair, PositionRange run,
                               int64_t first_query, int64_t number, int64_t tile_rows) {
  const int64_t per_position = layout.rows_per_position();
  TileRows rows;
  rows.first = first_query * per_position + number * tile_rows;
  rows.count = std::min(tile_rows, (first_query + run.size()) * per_position - rows.first);
  rows.shift = run.begin - first_query;
  const AttentionRow first = rows.row(layout, 0);
  const AttentionRow last = rows.row(layout, rows.count - 1);
  const bool one_position = first.position == last.position;
  rows.tile = {
      .first_position = first.position,
      .last_position = last.position,
      .first_copy = one_position ? first.copy : layout.first_query_copy,
      .last_copy = one_position ? last.copy : layout.first_query_copy + layout.query_copies - 1,
      .first_document = layout.document_of(pair, first.position - rows.shift),
      .last_document = layout.document_of(pair, last.position - rows.shift)};
  return rows;
}

constexpr int64_t num_tiles_of_run(const AttentionLayout& layout, PositionRange run,
                                   int64_t tile_rows) {
  return (run.size() * layout.rows_per_position() + tile_rows - 1) / tile_rows;
}

/// Query tiles of one pair. Tiles end where runs end.
constexpr int64_t num_query_tiles(const AttentionLayout& layout, int64_t tile_rows) {
  int64_t tiles = 0;
  for (int64_t i = 0; i < layout.query_runs.count; ++i)
    tiles += num_tiles_of_run(layout, layout.query_runs.run[i], tile_rows);
  return tiles;
}

constexpr TileRows query_tile(const AttentionLayout& layout, int64_t pair, int64_t number,
                              int64_t tile_rows) {
  int64_t first_query = 0;
  for (int64_t i = 0; i < layout.query_runs.count; ++i) {
    const PositionRange run = layout.query_runs.run[i];
    const int64_t tiles = num_tiles_of_run(layout, run, tile_rows);
    if (number < tiles) return tile_of_run(layout, pair, run, first_query, number, tile_rows);
    number -= tiles;
    first_query += run.size();
  }
  return {};
}

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
