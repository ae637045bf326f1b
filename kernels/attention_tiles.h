// Which key blocks a tile of attention query rows visits, and the keys each row sees. Pure
// functions of AttentionMask, shared by CPU code, CUDA code and tests.
//
// A query tile is a run of consecutive rows of [Sq, Kq*R]. All copies of a position share the mask
// m <= n over original keys (PHD-Transformer, Eq. 2), so one pass over the original key blocks
// serves every copy: the work is K times vanilla attention. A short band of hidden keys follows.
#pragma once

#include "kernels/attention_mask.h"
#include "kernels/position_range.h"

namespace phalanx {

/// Positions of copy `key_copy` that `query` sees when the pattern over original keys is full. For
/// another pattern it holds inside each pattern block that the query's block sees. Hidden keys
/// form one run too: the window and the chunk cut off the past, the copy order the own position.
constexpr PositionRange visible_keys(const AttentionMask& mask, AttentionRow query,
                                     int64_t key_copy, int64_t document_start) {
  const int64_t n = query.position;
  if (mask.visibility == CopyVisibility::naive) {
    return {document_start, key_copy <= query.copy ? n + 1 : n};
  }
  if (key_copy == 0) return {document_start, n + 1};
  if (query.copy == 0) return {n, n};
  int64_t begin = 0;
  if (mask.unit == WindowUnit::positions) {
    begin = std::max(n - mask.window + 1, n / mask.chunk * mask.chunk);
  } else {
    const int64_t scale = mask.copies - 1;
    const int64_t row = n * scale + query.copy - 1;
    const int64_t first = std::max(row - mask.window + 1, row / mask.chunk * mask.chunk);
    begin = (std::max<int64_t>(first - (key_copy - 1), 0) + scale - 1) / scale;
  }
  begin = std::max(std::min(begin, n), document_start);  // min: the own position stays visible
  return {begin, key_copy <= query.copy ? n + 1 : n};
}

/// What the rows of a query tile have in common (all bounds inclusive).
struct QueryTile {
  int64_t first_position = 0, last_position = 0;
  int64_t first_copy = 0, last_copy = 0;
  int64_t first_document = 0, last_document = 0;  // smallest and largest document start
};

/// Key positions [begin, end) of one copy. `full`: every row of the tile sees every key.
struct KeyBlock {
  int64_t copy = 0;
  int64_t begin = 0;
  int64_t end = 0;
  bool full = false;
};

/// Whether some or all rows of the tile see the pattern block of key position `key`.
struct PatternCover {
  bool some = false;
  bool all = true;
};
constexpr PatternCover pattern_cover(const AttentionMask& mask, const QueryTile& tile,
                                     int64_t key) {
  if (mask.pattern == KeyPattern::full) return {true, true};
  PatternCover cover;
  const int64_t last = tile.last_position / mask.block;
  for (int64_t query = tile.first_position / mask.block; query <= last; ++query) {
    const bool visible = mask.block_visible(query, key / mask.block);
    cover.some = cover.some || visible;
    cover.all = cover.all && visible;
  }
  return cover;
}

/// Keys that are there to be seen: `positions` of copies [first_copy, end_copy).
struct PresentKeys {
  PositionRange positions;
  int64_t first_copy = 0;
  int64_t end_copy = std::numeric_limits<int64_t>::max();
};

/// Visits the blocks of one copy that obey the pattern over original keys. Blocks start at
/// multiples of `block_size` whatever the tile, because then an original adds up its keys in the
/// same order for every K, and its output is the same bit for bit.
template <class Visit>
constexpr void for_each_causal_block(const AttentionMask& mask, const QueryTile& tile, int64_t copy,
                                     PositionRange keys, int64_t block_size, Visit&& visit) {
  const bool own_visible = mask.visibility == CopyVisibility::local || copy <= tile.first_copy;
  const int64_t last_full = own_visible ? tile.first_position : tile.first_position - 1;
  const int64_t end = std::min(keys.end, tile.last_position + 1);
  int64_t begin = std::max(keys.begin, tile.first_document / block_size * block_size);
  while (begin < end) {
    int64_t next = (begin / block_size + 1) * block_size;
    if (mask.pattern != KeyPattern::full) {
      next = std::min(next, (begin / mask.block + 1) * mask.block);
    }
    next = std::min(next, keys.end);
    const PatternCover cover = pattern_cover(mask, tile, begin);
    const bool full = cover.all && next - 1 <= last_full && begin >= tile.last_document;
    if (cover.some && next > tile.first_document) visit(KeyBlock{copy, begin, next, full});
    begin = next;
  }
}

/// Calls visit(KeyBlock) for each block of at most `block_size` keys inside `keys` that some row of
/// the tile may see, in the order of the sums: originals first, then hidden copies.
template <class Visit>
constexpr void for_each_key_block(const AttentionMask& mask, const QueryTile& tile,
                                  const PresentKeys& keys, int64_t block_size, Visit&& visit) {
  const bool naive = mask.visibility == CopyVisibility::naive;
  const int64_t end_copy = std::min(keys.end_copy, mask.copies);
  const int64_t end_causal = naive ? end_copy : std::min<int64_t>(end_copy, 1);
  for (int64_t copy = keys.first_copy; copy < end_causal; ++copy) {
    for_each_causal_block(mask, tile, copy, keys.positions, block_size, visit);
  }
  if (naive || tile.last_copy == 0) return;
  const int64_t first = std::max(
      {keys.positions.begin, tile.first_document, mask.first_hidden_position(tile.first_position)});
  const int64_t end = std::min(keys.positions.end, tile.last_position + 1);
  for (int64_t copy = std::max<int64_t>(keys.first_copy, 1); copy < end_copy; ++copy) {
    for (int64_t begin = first; begin < end; begin += block_size) {
      visit(KeyBlock{copy, begin, std::min(begin + block_size, end), false});
    }
  }
}

}  // namespace phalanx
