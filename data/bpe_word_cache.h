// Remembers the ids of recent words: natural text repeats itself, and a look-up is much cheaper
// than merging. Direct-mapped, one cache line per word, a newcomer replaces what hashed to the same
// line.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

namespace phalanx {

class BpeWordCache {
 public:
  /// Appends the ids of `word` and returns true if they are known.
  bool find(std::string_view word, std::vector<int32_t>& ids) const {
    if (word.size() > kMaxBytes) return false;
    const Line& line = lines_[index(word)];
    if (line.size != word.size() || std::memcmp(line.word.data(), word.data(), word.size()) != 0)
      return false;
    ids.insert(ids.end(), line.ids.begin(), line.ids.begin() + line.count);
    return true;
  }

  /// Words or id lists too long for a line are not kept: they are rare and seldom come again.
  void insert(std::string_view word, std::span<const int32_t> ids) {
    if (word.size() > kMaxBytes || ids.size() > kMaxIds) return;
    Line& line = lines_[index(word)];
    line.size = static_cast<uint8_t>(word.size());
    line.count = static_cast<uint8_t>(ids.size());
    std::ranges::copy(word, line.word.begin());
    std::ranges::copy(ids, line.ids.begin());
  }

 private:
  static constexpr size_t kLines = size_t{1}
                                   << 15;  // 2 MiB: about the size of a second-level cache
  static constexpr size_t kMaxBytes = 30;
  static constexpr size_t kMaxIds = 8;
  struct alignas(64) Line {
    uint8_t size = 0;  // 0: free; words are never empty
    uint8_t count = 0;
    std::array<char, kMaxBytes> word{};
    std::array<int32_t, kMaxIds> ids{};
  };
  static_assert(sizeof(Line) == 64);

  static size_t index(std::string_view word) {
    return std::hash<std::string_view>{}(word) % kLines;
  }

  std::vector<Line> lines_ = std::vector<Line>(kLines);
};

}  // namespace phalanx
