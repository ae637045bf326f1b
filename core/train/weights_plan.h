// Which rank gives which block of a tensor, so that every element of it is given exactly once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/piece_table.h"

namespace phalanx {

/// Rows [row_begin, row_end) of the global tensor, all columns of the piece they are taken from.
struct WeightsBlock {
  int64_t entry = 0;  // place in the table
  int rank = 0;       // that gives it: the lowest that holds the piece
  int64_t row_begin = 0;
  int64_t row_end = 0;
};

/// Entries [first, last) of `table`, all of one tensor, as blocks of at most `max_elements` (one
/// row at least) that cover it without overlap. Copies and overlapping pieces, such as those of a
/// tied embedding whose two optimizer shards were cut at different rows, give each row once. Throws
/// an error that names the tensor if a part of it is nowhere. Pure function.
std::vector<WeightsBlock> cover_tensor(const PieceTable& table, int64_t first, int64_t last,
                                       int64_t max_elements);

}  // namespace phalanx
