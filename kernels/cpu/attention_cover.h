// Which part of a query tile x key block is computed, and the product that makes its scores.
#pragma once

#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/tile_product.h"

namespace phalanx {

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
    PositionRange range;
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
