// Where wgmma and TMA put things: index maps as plain functions, so that they can be tested on the
// host. PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
#pragma once

#include <cstdint>

namespace phalanx {

// --- registers: "Register Fragments", D of m64nNk16 ---

/// Row of D of registers d[i] of a warpgroup's thread: the first of its two, and the second.
constexpr int fragment_row(int thread, int i) {
  return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
}
/// Column of D of register d[i].
constexpr int fragment_column(int thread, int i) {
  return i / 4 * 8 + thread % 4 * 2 + i % 2;
}
/// D becomes A of a product over its columns without moving between threads: the registers of A's
/// step `step` (16 columns) are a[r] = (d[first], d[first + 1]).
constexpr int first_of_operand(int step, int r) {
  return step * 8 + r * 2;
}

// --- shared memory: bf16 tiles of 64 or 128 columns, in halves of 64 as TMA brings them ---

inline constexpr int kHalfColumns = 64;  // 128 bytes, the width of the swizzle
inline constexpr int kRowBytes = 128;
inline constexpr int kGroupBytes = 8 * kRowBytes;  // eight rows: one period of the swizzle

/// What a descriptor's start moves by, in bytes, from the first 16 columns of a tile to step
/// `step`, when columns are summed over (Major::k).
constexpr int column_step(int rows, int step) {
  return step / 4 * rows * kRowBytes + step % 4 * 32;
}
/// The same from the first 16 rows, when rows are summed over (Major::mn).
constexpr int row_step(int step) {
  return step * 2 * kGroupBytes;
}

}  // namespace phalanx
