// AttentionLayout: one attention call as a CUDA kernel's argument (sizes, mask, positions), where
// its rows lie, and its tiles of query rows. Plain index arithmetic, tested on the host.
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

}  // namespace phalanx
