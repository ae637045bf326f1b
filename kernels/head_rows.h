// HeadRows: where head h of activation row [s, b, k] lies in a heads tensor. Index arithmetic that
// checks, CPU and CUDA code share.
#pragma once

#include "kernels/op_arguments.h"

namespace phalanx {

struct HeadRows {
  int64_t positions, sequences, copies;  // S, B, K present
  int64_t groups, heads_per_group;       // G, R; head h = g * R + r
  int64_t head_dim;                      // D
  HeadLayout layout;

  /// `shape` is queries [B, G, S, K*R, D] or keys [K, B, G, S, D].
  HeadRows(const Shape& shape, const SplitHeads& options)
      : copies(options.copies), head_dim(shape[4]), layout(options.layout) {
    const bool queries = layout == HeadLayout::queries;
    sequences = shape[queries ? 0 : 1];
    groups = shape[queries ? 1 : 2];
    positions = shape[queries ? 2 : 3];
    heads_per_group = queries ? shape[3] / copies : 1;
  }

  constexpr int64_t heads() const { return groups * heads_per_group; }
  constexpr int64_t num_rows() const { return positions * sequences * copies; }

  /// Index of the first element of `head` of activation row `row` = (s * B + b) * K + k.
  constexpr int64_t offset(int64_t row, int64_t head) const {
    const int64_t k = row % copies;
    const int64_t b = row / copies % sequences;
    const int64_t s = row / (copies * sequences);
    if (layout == HeadLayout::keys)
      return (((k * sequences + b) * groups + head) * positions + s) * head_dim;
    const int64_t g = head / heads_per_group;
    const int64_t r = head % heads_per_group;
    const int64_t group_row = (b * groups + g) * positions + s;
    return ((group_row * copies + k) * heads_per_group + r) * head_dim;
  }
};

}  // namespace phalanx
