// Where 16-byte chunks of a tile's rows lie in shared memory. Index arithmetic only: the host tests
// it too.
#pragma once

#include <cstdint>

namespace phalanx {

inline constexpr int kChunkValues = 8;  // bf16 values in 16 bytes

/// Element at which chunk `chunk` of row `row` begins in a tile of rows of kWidth (64, 96 or 128)
/// bf16 values. Chunks of a row are permuted so that 8 rows' chunks of one column, which ldmatrix
/// reads at once, lie in 8 different groups of 4 banks. A row of 96 is one and a half times all
/// banks, so that rows by themselves alternate between two groups and only two further bits turn.
template <int kWidth>
constexpr int swizzled(int row, int chunk) {
  constexpr int kChunks = kWidth / kChunkValues;
  static_assert(kChunks % 8 == 0 || kChunks % 8 == 4);
  const int turn = kChunks % 8 == 0 ? row % 8 : row / 2 % 4;
  return (row * kChunks + (chunk ^ turn)) * kChunkValues;
}

}  // namespace phalanx
