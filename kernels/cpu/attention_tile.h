// The sizes of one attention call on the CPU, and one tile of its query rows.
#pragma once

#include <algorithm>

#include "kernels/attention_tiles.h"
#include "kernels/cpu/tile_vector.h"
#include "kernels/op_arguments.h"

namespace phalanx {

inline constexpr double kLog2E = 1.4426950408889634074;
inline constexpr int64_t kTileRows = 64;  // query rows of a tile: they are the vector lanes
inline constexpr int64_t kTileKeys = 64;  // keys of a block
inline constexpr int64_t kKeyGroup = 16;  // keys that share one range of lanes
inline constexpr int64_t kKeyChunk = 4 * kTileKeys;  // keys of a task that has part of a pair's
inline constexpr int64_t kMaxGroups = kTileKeys / kKeyGroup;

constexpr int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

/// Sizes and inputs of one call. `width` is D rounded up to whole vectors.
template <class T>
struct AttentionProblem {
  using Traits = TileTraits<T>;
  explicit AttentionProblem(const AttentionInputs& in)
      : inputs(in),
        batch(in.q.shape[0]),
        groups(in.q.shape[1]),
        queries(in.q.shape[2]),
        rows_per_position(in.q.shape[3]),
        head_dim(in.q.shape[4]),
        keys(in.k.shape[3]),
        key_copies(in.k.shape[0]),
        width(round_up(head_dim, Traits::Lanes::kLanes)),
        q(in.q.as<T>()),
        k(in.k.as<T>()),
        v(in.v.as<T>()),
        document_start(in.document_start ? in.document_start.as<int32_t>() : nullptr) {}

  int64_t heads_per_group() const { return rows_per_position / inputs.query_copies; }
  int64_t rows() const { return queries * rows_per_position; }
  int64_t tiles_of(const PositionRange& run) const {
    return (run.size() * rows_per_position + kTileRows - 1) / kTileRows;
  }
  /// Tiles end where runs end: the positions of a tile's rows are consecutive.
  int64_t num_tiles() const {
    int64_t tiles = 0;
    for (const PositionRange& run : query_runs()) tiles += tiles_of(run);
    return tiles;
  }
  int64_t num_pairs() const { return batch * groups; }  // (sequence, group) pairs
  std::span<const PositionRange> query_runs() const {
    return inputs.query_runs.empty() ? std::span(&all_queries, 1) : inputs.query_runs;
  }
  std::span<const PositionRange> key_runs() const {
    return inputs.key_runs.empty() ? std::span(&all_keys, 1) : inputs.key_runs;
  }
  /// First element of k or v at (slot of [Kk], pair, row of [Sk]).
  int64_t key_index(int64_t slot, int64_t pair, int64_t row) const {
    return ((slot * num_pairs() + pair) * keys + row) * head_dim;
  }
  /// Calls visit(block, row) for the blocks that the tile may see among rows [rows.begin, rows.end)
  /// of [Sk]; `row` is the row of the block's first key.
  template <class Visit>
  void for_each_block(const QueryTile& tile, PositionRange key_rows, Visit&& visit) const {
    int64_t row = 0;  // of the run's first position
    for (const PositionRange& run : key_runs()) {
      const int64_t shift = run.begin - row;  // from rows to positions
      const PresentKeys present{
          {std::max(run.begin, key_rows.begin + shift), std::min(run.end, key_rows.end + shift)},
          inputs.first_key_copy,
          inputs.first_key_copy + key_copies};
      row += run.size();
      if (present.positions.size() == 0) continue;
      for_each_key_block(inputs.mask, tile, present, kTileKeys,
                         [&](const KeyBlock& block) { visit(block, block.begin - shift); });
    }
  }
  /// First element of out or dout for row `row` of [Sq * Kq * R] of a pair.
  int64_t output_index(int64_t pair, int64_t row) const {
    const int64_t per_group = heads_per_group();
    const int64_t slot = row % rows_per_position;
    const int64_t position_row =
        (row / rows_per_position * batch + pair / groups) * inputs.query_copies + slot / per_group;
    const int64_t head = pair % groups * per_group + slot % per_group;
    return (position_row * groups * per_group + head) * head_dim;
  }

  const AttentionInputs& inputs;
  int64_t batch, groups, queries, rows_per_position, head_dim, keys, key_copies, width;
  PositionRange all_queries{0, queries};  // the run of inputs that name none
  PositionRange all_keys{0, keys};
  const T* q;
  const T* k;
  const T* v;
  const int32_t* document_start;
};

/// Consecutive rows of [Sq, Kq*R] of one (sequence, group) pair.
struct QueryRows {
  int64_t pair = 0;
  int64_t first = 0;  // row number in [Sq * Kq * R]
  int64_t count = 0;
  QueryTile tile;
  AttentionRow row[kTileRows];
  int64_t document[kTileRows];
};

template <class T>
QueryRows query_rows(const AttentionProblem<T>& problem, int64_t pair, int64_t tile) {
  const AttentionInputs& in = problem.inputs;
  QueryRows rows;
  rows.pair = pair;
  PositionRange run;
  int64_t first_query = 0;  // of the run, along [Sq]
  for (const PositionRange& candidate : problem.query_runs()) {
    run = candidate;
    const int64_t tiles = problem.tiles_of(run);
    if (tile < tiles) break;
    tile -= tiles;
    first_query += run.size();
  }
  rows.first = first_query * problem.rows_per_position + tile * kTileRows;
  rows.count =
      std::min(kTileRows, (first_query + run.size()) * problem.rows_per_position - rows.first);
  const int32_t* documents = problem.document_start == nullptr
                                 ? nullptr
                                 : problem.document_start + pair / problem.groups * problem.queries;
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t query = (rows.first + i) / problem.rows_per_position;
    const int64_t slot = (rows.first + i) % problem.rows_per_position;
    const AttentionRow row{run.begin + query - first_query,
                           in.first_query_copy + slot / problem.heads_per_group()};
    const int64_t document = documents == nullptr ? 0 : documents[query];
    rows.row[i] = row;
    rows.document[i] = document;
    QueryTile& t = rows.tile;
    if (i == 0) t = {row.position, row.position, row.copy, row.copy, document, document};
    t.last_position = row.position;
    t.first_copy = std::min(t.first_copy, row.copy);
    t.last_copy = std::max(t.last_copy, row.copy);
    t.first_document = std::min(t.first_document, document);
    t.last_document = std::max(t.last_document, document);
  }
  return rows;
}

/// Tasks that divide the keys of a pair are cut at multiples of kKeyChunk positions of each run.
inline int64_t num_chunks_of(const PositionRange& run) {
  return (run.end + kKeyChunk - 1) / kKeyChunk - run.begin / kKeyChunk;
}

template <class T>
int64_t num_key_chunks(const AttentionProblem<T>& problem) {
  int64_t chunks = 0;
  for (const PositionRange& run : problem.key_runs()) chunks += num_chunks_of(run);
  return chunks;
}

/// Rows of [Sk] in chunk `number`.
template <class T>
PositionRange key_chunk(const AttentionProblem<T>& problem, int64_t number) {
  int64_t row = 0;  // of the run's first position
  for (const PositionRange& run : problem.key_runs()) {
    const int64_t begin = (run.begin / kKeyChunk + number) * kKeyChunk;
    if (number < num_chunks_of(run)) {
      const int64_t shift = row - run.begin;  // from positions to rows
      return {std::max(run.begin, begin) + shift, std::min(run.end, begin + kKeyChunk) + shift};
    }
    number -= num_chunks_of(run);
    row += run.size();
  }
  return {};
}

}  // namespace phalanx
