// AttentionMask: which key rows a query row sees. The one rule that CPU code, CUDA code and tests
// share. PHD-Transformer Eq. 2 and its windowed forms (PHD-SWA, PHD-CSWA), naive repetition, and
// LongGen's block patterns over original keys.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/base/enum_names.h"

namespace phalanx {

/// How copies of earlier tokens are seen. `naive`: plain causal attention over all K*S rows.
/// `local`: originals are seen by everyone, hidden copies only inside a small local band.
enum class CopyVisibility : uint8_t { local, naive };

/// Unit of the window W and the chunk C (an open reading of the paper; equal for K = 2).
enum class WindowUnit : uint8_t { positions, hidden_tokens };

/// Pattern over original keys (LongGen): all earlier ones; the first block(s) and the most recent
/// blocks; every stride-th block and the most recent block(s).
enum class KeyPattern : uint8_t { full, sink_window, strided };

template <>
struct EnumNames<WindowUnit> {
  static constexpr std::pair<WindowUnit, std::string_view> table[] = {
      {WindowUnit::positions, "positions"}, {WindowUnit::hidden_tokens, "hidden-tokens"}};
};
template <>
struct EnumNames<KeyPattern> {
  static constexpr std::pair<KeyPattern, std::string_view> table[] = {
      {KeyPattern::full, "full"},
      {KeyPattern::sink_window, "sink-window"},
      {KeyPattern::strided, "strided"}};
};

/// A row of the attention matrix: a copy (0 = original, 1..K-1 = hidden) of a position (0-based).
struct AttentionRow {
  int64_t position;
  int64_t copy;
};

struct AttentionMask {
  static constexpr int64_t kNoChunk = std::numeric_limits<int64_t>::max();

  int64_t copies = 1;  // K
  CopyVisibility visibility = CopyVisibility::local;
  int64_t window = 1;        // W >= 1, counts the query's own position (or token)
  int64_t chunk = kNoChunk;  // C >= 1; kNoChunk: one endless chunk
  WindowUnit unit = WindowUnit::positions;

  KeyPattern pattern = KeyPattern::full;
  int64_t block = 64;          // positions per block of a pattern
  int64_t sink_blocks = 1;     // sink_window: leading blocks that stay visible
  int64_t window_blocks = 32;  // sink_window: most recent blocks, the query's own counted
  int64_t stride_blocks = 64;  // strided: every stride-th block, block 0 the first
  int64_t local_blocks = 1;    // strided: most recent blocks, the query's own counted

  /// True if a query in query block `bq` may see keys of key block `bk` (block level, LongGen).
  constexpr bool block_visible(int64_t bq, int64_t bk) const {
    if (bk > bq) return false;
    switch (pattern) {
      case KeyPattern::full:
        return true;
      case KeyPattern::sink_window:
        return bk < sink_blocks || bq - bk < window_blocks;
      case KeyPattern::strided:
        return bk % stride_blocks == 0 || bq - bk < local_blocks;
    }
    return false;
  }

  /// True if the original (copy 0) at position m is visible to any copy of position n, documents
  /// aside. The same for all copies of n: the corollary of Eq. 2 that makes attention O(K).
  constexpr bool original_visible(int64_t n, int64_t m) const {
    return m <= n && (pattern == KeyPattern::full || block_visible(n / block, m / block));
  }

  /// True if hidden row `key` is visible to hidden row `query` (both copies >= 1, local mode).
  constexpr bool hidden_visible(AttentionRow query, AttentionRow key) const {
    if (key.position == query.position) return key.copy <= query.copy;
    if (key.position > query.position) return false;
    const int64_t scale = unit == WindowUnit::positions ? 1 : copies - 1;
    const int64_t q =
        unit == WindowUnit::positions ? query.position : query.position * scale + query.copy - 1;
    const int64_t k =
        unit == WindowUnit::positions ? key.position : key.position * scale + key.copy - 1;
    return q - k < window && q / chunk == k / chunk;
  }

  /// The rule. `document_start` is the first position of the query's document (0 without document
  /// masking); nothing before it is visible.
  constexpr bool visible(AttentionRow query, AttentionRow key, int64_t document_start = 0) const {
    if (key.position < document_start) return false;
    if (visibility == CopyVisibility::naive) {
      const bool causal = key.position < query.position ||
                          (key.position == query.position && key.copy <= query.copy);
      return causal && original_visible(query.position, key.position);
    }
    if (key.copy == 0) return original_visible(query.position, key.position);
    if (query.copy == 0) return false;
    return hidden_visible(query, key);
  }

  /// First position whose hidden copies a query at position n may see (n itself always may be).
  constexpr int64_t first_hidden_position(int64_t n) const {
    if (copies == 1) return n;
    const int64_t scale = unit == WindowUnit::positions ? 1 : copies - 1;
    const int64_t first = n * scale;  // the query's first hidden row reaches furthest back
    const int64_t by_window = std::max<int64_t>(0, first - std::min(first, window - 1));
    const int64_t by_chunk = first / chunk * chunk;
    return std::max(by_window, by_chunk) / scale;
  }
};

}  // namespace phalanx
