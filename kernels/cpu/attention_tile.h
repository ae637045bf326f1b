// What forward and backward of CPU attention share: the problem's sizes, one tile of query rows,
// which part of a tile x key block is computed, and the packing of tiles.
#pragma once

#include <algorithm>
#include <memory>
#include <new>

#include "kernels/attention_tiles.h"
#include "kernels/cpu/tile_product.h"
#include "kernels/op_arguments.h"

namespace phalanx {

inline constexpr int64_t kTileRows = 64;  // query rows of a tile: they are the vector lanes
inline constexpr int64_t kTileKeys = 64;  // keys of a block
inline constexpr int64_t kKeyGroup = 16;  // keys that share one range of lanes
inline constexpr int64_t kMaxGroups = kTileKeys / kKeyGroup;

constexpr int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

/// Memory that only grows: nothing is allocated once the largest problem was seen.
template <class T>
class GrowingBuffer {
 public:
  /// Room for `count` values, uninitialised; what an earlier call returned may be gone.
  T* get(int64_t count) {
    if (count > size_) {
      data_.reset();
      data_.reset(static_cast<T*>(
          ::operator new (static_cast<size_t>(count) * sizeof(T), std::align_val_t{64})));
      size_ = count;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete (data, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

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
        width(round_up(head_dim, Traits::Lanes::kLanes)),
        q(in.q.as<T>()),
        k(in.k.as<T>()),
        v(in.v.as<T>()),
        document_start(in.document_start ? in.document_start.as<int32_t>() : nullptr) {}

  int64_t heads_per_group() const { return rows_per_position / inputs.query_copies; }
  int64_t rows() const { return queries * rows_per_position; }
  int64_t num_tiles() const { return (rows() + kTileRows - 1) / kTileRows; }
  int64_t num_pairs() const { return batch * groups; }  // (sequence, group) pairs
  KeyRange key_range() const { return {inputs.key_offset, inputs.key_offset + keys}; }
  /// First element of k or v at (copy, pair, global position).
  int64_t key_index(int64_t copy, int64_t pair, int64_t position) const {
    return ((copy * num_pairs() + pair) * keys + position - inputs.key_offset) * head_dim;
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
  int64_t batch, groups, queries, rows_per_position, head_dim, keys, width;
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
  rows.first = tile * kTileRows;
  rows.count = std::min(kTileRows, problem.rows() - rows.first);
  const int32_t* documents = problem.document_start == nullptr
                                 ? nullptr
                                 : problem.document_start + pair / problem.groups * problem.queries;
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t query = (rows.first + i) / problem.rows_per_position;
    const int64_t slot = (rows.first + i) % problem.rows_per_position;
    const AttentionRow row{in.query_offset + query,
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

/// The part of (query tile) x (key block) that is computed, in steps of kKeyGroup keys and one
/// vector of queries. Rows that a group of keys cannot reach cost nothing.
template <class T>
struct BlockCover {
  using Lanes = typename TileTraits<T>::Lanes;
  static constexpr int64_t kMaxVectors = kTileRows / Lanes::kLanes;

  int64_t keys = 0;     // keys of the block
  int64_t vectors = 0;  // vectors of query rows
  bool masked = false;  // some computed pair is not visible: compare with begin and end
  int64_t vector_begin[kMaxGroups] = {}, vector_end[kMaxGroups] = {};  // per group of keys
  int64_t key_begin[kMaxVectors] = {}, key_end[kMaxVectors] = {};      // per vector of queries
  alignas(64) typename Lanes::Integer begin[kTileRows];  // visible keys of each query, counted
  alignas(64) typename Lanes::Integer end[kTileRows];    // from the block's first key

  int64_t num_groups() const { return (keys + kKeyGroup - 1) / kKeyGroup; }
  int64_t group_keys(int64_t group) const { return std::min(kKeyGroup, keys - group * kKeyGroup); }
};

template <class T>
void set_visible_keys(BlockCover<T>& cover, const AttentionMask& mask, const QueryRows& rows,
                      const KeyBlock& block) {
  using Integer = typename BlockCover<T>::Lanes::Integer;
  const bool patterned = mask.pattern != KeyPattern::full &&
                         (block.copy == 0 || mask.visibility == CopyVisibility::naive);
  const int64_t padded = cover.vectors * BlockCover<T>::Lanes::kLanes;
  for (int64_t i = 0; i < padded; ++i) {
    KeyRange range;
    if (i < rows.count && (!patterned || mask.block_visible(rows.row[i].position / mask.block,
                                                            block.begin / mask.block))) {
      range = visible_keys(mask, rows.row[i], block.copy, rows.document[i]);
      range.begin = std::clamp<int64_t>(range.begin - block.begin, 0, cover.keys);
      range.end = std::clamp<int64_t>(range.end - block.begin, 0, cover.keys);
    }
    cover.begin[i] = static_cast<Integer>(range.begin);
    cover.end[i] = static_cast<Integer>(range.end);
  }
}

template <class T>
void cover_block(BlockCover<T>& cover, const AttentionMask& mask, const QueryRows& rows,
                 const KeyBlock& block) {
  constexpr int64_t kLanes = BlockCover<T>::Lanes::kLanes;
  cover.keys = block.end - block.begin;
  cover.vectors = (rows.count + kLanes - 1) / kLanes;
  cover.masked = !block.full;
  if (cover.masked) set_visible_keys(cover, mask, rows, block);
  const int64_t num_groups = cover.num_groups();
  for (int64_t group = 0; group < num_groups; ++group) {
    cover.vector_begin[group] = cover.masked ? cover.vectors : 0;
    cover.vector_end[group] = cover.masked ? 0 : cover.vectors;
  }
  for (int64_t vector = 0; vector < cover.vectors; ++vector) {
    int64_t begin = cover.masked ? cover.keys : 0;
    int64_t end = cover.masked ? 0 : cover.keys;
    for (int64_t i = vector * kLanes; cover.masked && i < (vector + 1) * kLanes; ++i) {
      if (cover.begin[i] >= cover.end[i]) continue;
      begin = std::min<int64_t>(begin, cover.begin[i]);
      end = std::max<int64_t>(end, cover.end[i]);
    }
    cover.key_begin[vector] = std::min(begin, end) / kKeyGroup * kKeyGroup;
    cover.key_end[vector] = end;
    for (int64_t group = begin / kKeyGroup; group * kKeyGroup < end; ++group) {
      cover.vector_begin[group] = std::min(cover.vector_begin[group], vector);
      cover.vector_end[group] = std::max(cover.vector_end[group], vector + 1);
    }
  }
}

/// Rows of D values as tiles need them: padded to `width` values with zeros.
template <class T>
struct TileRows {
  using Stored = typename TileTraits<T>::Stored;
  const Stored* data;
  int64_t stride;
};

/// One row as a tile's: widened and padded with zeros; all zeros if `source` is null.
template <class T>
void load_row(typename TileTraits<T>::Stored* target, const T* source,
              const AttentionProblem<T>& problem) {
  using Stored = typename TileTraits<T>::Stored;
  const int64_t count = source == nullptr ? 0 : problem.head_dim;
  if constexpr (std::is_same_v<Stored, T>) {
    std::copy_n(source, count, target);
  } else {
    for (int64_t d = 0; d < count; ++d) target[d] = static_cast<Stored>(source[d]);
  }
  std::fill(target + count, target + problem.width, Stored(0));
}

/// target = factor * source, rounded to T, for `count` values.
template <class T, class Real>
void store_scaled(T* target, const Real* source, Real factor, int64_t count) {
  using Traits = TileTraits<T>;
  int64_t d = 0;
  for (; d + Traits::Lanes::kLanes <= count; d += Traits::Lanes::kLanes) {
    Traits::store_values(target + d, Traits::Lanes::load(source + d) * factor);
  }
  for (; d < count; ++d) target[d] = T(source[d] * factor);
}

/// `count` consecutive rows as a tile; copied into `buffer` only if they must be padded or widened.
template <class T>
TileRows<T> load_rows(const AttentionProblem<T>& problem, const T* source, int64_t count,
                      typename TileTraits<T>::Stored* buffer) {
  if constexpr (std::is_same_v<typename TileTraits<T>::Stored, T>) {
    if (problem.width == problem.head_dim) return {source, problem.head_dim};
  }
  for (int64_t i = 0; i < count; ++i) {
    load_row(buffer + i * problem.width, source + i * problem.head_dim, problem);
  }
  return {buffer, problem.width};
}

/// packed[d / kPack][row][d % kPack] = rows(row, d): the right operand of a product that sums over
/// D with the rows as columns. Rows beyond `count` are zero.
template <class T>
void pack_transposed(typename TileTraits<T>::Stored* packed, const TileRows<T>& rows, int64_t count,
                     int64_t width) {
  constexpr int64_t kPack = TileTraits<T>::kPack;
  using Stored = typename TileTraits<T>::Stored;
  const int64_t padded = round_up(count, TileTraits<T>::Lanes::kLanes);
  for (int64_t d = 0; d < width; d += kPack) {
    Stored* target = packed + d * kTileRows;
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(target + i * kPack, rows.data + i * rows.stride + d, kPack * sizeof(Stored));
    }
    std::fill(target + count * kPack, target + padded * kPack, Stored(0));
  }
}

/// packed[row / kPack][d][row % kPack] = rows(row, d): the right operand of a product that sums
/// over the rows; the rows themselves when nothing has to be interleaved. Odd counts get one row
/// of zeros.
template <class T>
TileRows<T> pack_interleaved(typename TileTraits<T>::Stored* packed, const TileRows<T>& rows,
                             int64_t count, int64_t width) {
  constexpr int64_t kPack = TileTraits<T>::kPack;
  using Stored = typename TileTraits<T>::Stored;
  if constexpr (kPack == 1) {
    return rows;
  } else {
    constexpr int64_t kLanes = TileTraits<T>::Lanes::kLanes;
    const Stored zeros[kLanes] = {};
    for (int64_t i = 0; i < count; i += kPack) {
      Stored* target = packed + i * width;
      const Stored* first = rows.data + i * rows.stride;
      const Stored* second = first + rows.stride;
      for (int64_t d = 0; d < width; d += kLanes) {
        TileTraits<T>::interleave_values(target + d * kPack, first + d,
                                         i + 1 < count ? second + d : zeros);
      }
    }
    return {packed, width * kPack};
  }
}

/// scores[key][row] = rows(key, :) . columns(:, row) over the covered part of the block: K Q^T, or
/// V dO^T in the backward.
template <class T>
void score_block(const BlockCover<T>& cover, const TileRows<T>& rows,
                 const typename TileTraits<T>::Stored* columns, int64_t width,
                 typename TileTraits<T>::Real* scores) {
  constexpr int64_t kLanes = BlockCover<T>::Lanes::kLanes;
  constexpr int64_t kPack = TileTraits<T>::kPack;
  for (int64_t group = 0; group < cover.num_groups(); ++group) {
    const int64_t first = cover.vector_begin[group];
    if (first >= cover.vector_end[group]) continue;
    tile_product<T, TileLayout::by_rows>(
        {.a = rows.data + group * kKeyGroup * rows.stride,
         .a_stride = rows.stride,
         .b = columns + first * kLanes * kPack,
         .b_stride = kTileRows * kPack,
         .c = scores + group * kKeyGroup * kTileRows + first * kLanes,
         .c_stride = kTileRows,
         .rows = cover.group_keys(group),
         .vectors = cover.vector_end[group] - first,
         .sum = width,
         .accumulate = false});
  }
}

}  // namespace phalanx
