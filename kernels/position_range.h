// PositionRange: a run of positions of the sequence.
#pragma once

#include <cstdint>

namespace phalanx {

/// Positions [begin, end); empty if end <= begin.
struct PositionRange {
  int64_t begin = 0;
  int64_t end = 0;

  constexpr int64_t size() const { return end > begin ? end - begin : 0; }
  constexpr bool operator==(const PositionRange&) const = default;
};

}  // namespace phalanx
