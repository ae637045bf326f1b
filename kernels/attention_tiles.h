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

/// First pattern block from `block` on that some row of a tile may see whose first query block is
/// `first_query`: what lies between is skipped without being looked at.
constexpr int64_t next_visible_block(const AttentionMask& mask, int64_t first_query,
                                     int64_t block) {
  switch (mask.pattern) {
    case KeyPattern::full:
      return block;
    case KeyPattern::sink_window:
      if (block < mask.sink_blocks) return block;
      return std::max(block, first_query - mask.window_blocks + 1);
    case KeyPattern::strided: {
      const int64_t stride = mask.stride_blocks;
      const int64_t multiple = (block + stride - 1) / stride * stride;
      return std::min(multiple, std::max(block, first_query - mask.local_blocks + 1));
    }
  }
  return block;
}

/// Whether some or all rows of the tile see keys `keys` of `copy`, which lie in one pattern block.
/// `some` may be true of keys that nobody sees, never the reverse; `all` is never true wrongly.
constexpr PatternCover block_cover(const AttentionMask& mask, const QueryTile& tile, int64_t copy,
                                   PositionRange keys) {
  if (keys.begin > tile.last_position || keys.end <= tile.first_document) return {false, false};
  if (mask.visibility == CopyVisibility::local && copy > 0) {
    const bool some =
        tile.last_copy > 0 && keys.end > mask.first_hidden_position(tile.first_position);
    return {some, false};
  }
  const bool own_visible = mask.visibility == CopyVisibility::local || copy <= tile.first_copy;
  const int64_t last_full = own_visible ? tile.first_position : tile.first_position - 1;
  const PatternCover cover = pattern_cover(mask, tile, keys.begin);
  return {cover.some, cover.all && keys.end - 1 <= last_full && keys.begin >= tile.last_document};
}

/// The blocks of at most `block_size` keys that some row of a tile may see, one after the other in
/// the order of the sums: originals first, then hidden copies.
///
/// Blocks of originals start at multiples of `block_size` whatever the tile, because then an
/// original adds up its keys in the same order for every K, and its output is the same bit for bit.
class KeyBlocks {
 public:
  constexpr KeyBlocks(const AttentionMask& mask, const QueryTile& tile, const PresentKeys& keys,
                      int64_t block_size)
      : present_(keys.positions),
        copy_(keys.first_copy),
        end_copy_(std::min(keys.end_copy, mask.copies)),
        block_size_(block_size) {
    begin_copy(mask, tile);
  }

  /// Writes the next block and returns true, or returns false after the last.
  constexpr bool next(const AttentionMask& mask, const QueryTile& tile, KeyBlock& block) {
    for (; copy_ < end_copy_; ++copy_, begin_copy(mask, tile)) {
      const bool causal = is_causal(mask);
      while (begin_ < end_) {
        block = {copy_, begin_, causal ? causal_end(mask) : std::min(begin_ + block_size_, end_),
                 false};
        begin_ = block.end;
        const PatternCover cover = block_cover(mask, tile, copy_, {block.begin, block.end});
        block.full = cover.all;
        if (cover.some) return true;
        if (causal) skip_pattern(mask, tile);
      }
    }
    return false;
  }

 private:
  constexpr bool is_causal(const AttentionMask& mask) const {
    return copy_ == 0 || mask.visibility == CopyVisibility::naive;
  }
  constexpr int64_t causal_end(const AttentionMask& mask) const {
    int64_t end = (begin_ / block_size_ + 1) * block_size_;
    if (mask.pattern != KeyPattern::full) {
      end = std::min(end, (begin_ / mask.block + 1) * mask.block);
    }
    return std::min(end, present_.end);
  }
  constexpr void skip_pattern(const AttentionMask& mask, const QueryTile& tile) {
    if (mask.pattern == KeyPattern::full) return;
    const int64_t block = begin_ / mask.block;
    const int64_t visible = next_visible_block(mask, tile.first_position / mask.block, block);
    if (visible > block) begin_ = visible * mask.block;
  }
  constexpr void begin_copy(const AttentionMask& mask, const QueryTile& tile) {
    if (copy_ >= end_copy_) return;
    end_ = std::min(present_.end, tile.last_position + 1);
    if (is_causal(mask)) {
      begin_ = std::max(present_.begin, tile.first_document / block_size_ * block_size_);
      return;
    }
    const int64_t first = mask.first_hidden_position(tile.first_position);
    begin_ = std::max(present_.begin, std::max(tile.first_document, first));
    if (tile.last_copy == 0) copy_ = end_copy_;  // originals see no hidden copy
  }

  PositionRange present_;
  int64_t copy_;
  int64_t end_copy_;
  int64_t block_size_;
  int64_t begin_ = 0;  // of the blocks of copy_ still to come
  int64_t end_ = 0;
};

/// Calls visit(KeyBlock) for each of them.
template <class Visit>
constexpr void for_each_key_block(const AttentionMask& mask, const QueryTile& tile,
                                  const PresentKeys& keys, int64_t block_size, Visit&& visit) {
  KeyBlocks blocks(mask, tile, keys, block_size);
  KeyBlock block;
  while (blocks.next(mask, tile, block)) visit(block);
}

}  // namespace phalanx
