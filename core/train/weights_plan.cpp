// Covering a tensor band by band (all pieces of a band have the same columns), each going down the
// rows.
#include "core/train/weights_plan.h"

#include <algorithm>

namespace phalanx {
namespace {

[[noreturn]] void fail_incomplete(const Piece& piece, int64_t row, int64_t column) {
  fail("tensor ", piece.name, " ", piece.global_shape.to_string(), " cannot be written: ",
       "the pieces of the ranks leave a gap or differ in their columns at row ", row, ", column ",
       column, "; its registration does not fit the mesh");
}

class TensorCover {
 public:
  TensorCover(const PieceTable& table, int64_t first, int64_t last, int64_t max_elements)
      : table_(table), at_(first), last_(last), max_elements_(max_elements) {}

  std::vector<WeightsBlock> cover() {
    const Piece& any = piece(at_);
    const int64_t columns = any.global_shape.rank() == 2 ? any.global_shape[1] : 1;
    int64_t column = 0;
    while (at_ < last_) column = cover_band(column);
    if (column != columns) fail_incomplete(any, 0, column);
    return std::move(blocks_);
  }

 private:
  const Piece& piece(int64_t i) const { return table_.entries()[static_cast<size_t>(i)].piece; }
  bool in_band(int64_t column) const { return at_ < last_ && piece(at_).offset[1] == column; }

  /// Covers the band that begins at `column` and returns where the next one does.
  int64_t cover_band(int64_t column) {
    const Piece& band = piece(at_);
    if (band.offset[1] != column) fail_incomplete(band, 0, column);
    int64_t row = 0;
    while (row < band.global_shape[0]) {
      const int64_t best = furthest(column, row);
      if (best < 0 || piece(best).size[1] != band.size[1]) fail_incomplete(band, row, column);
      const int64_t end = piece(best).offset[0] + piece(best).size[0];
      add_blocks(best, row, end);
      row = end;
    }
    while (in_band(column)) ++at_;
    return column + band.size[1];
  }

  /// Of the pieces of the band that begin at `row` or above, the one that reaches furthest below
  /// it; -1 if none does. Those passed over reach no further than the choice.
  int64_t furthest(int64_t column, int64_t row) {
    int64_t best = -1;
    int64_t end = row;
    for (; in_band(column) && piece(at_).offset[0] <= row; ++at_) {
      const int64_t its_end = piece(at_).offset[0] + piece(at_).size[0];
      if (its_end > end) best = at_;
      end = std::max(end, its_end);
    }
    return best;
  }

  void add_blocks(int64_t entry, int64_t row_begin, int64_t row_end) {
    const int rank = table_.first_holder(table_.entries()[static_cast<size_t>(entry)]);
    const int64_t step = std::max<int64_t>(1, max_elements_ / piece(entry).size[1]);
    for (int64_t row = row_begin; row < row_end; row += step)
      blocks_.push_back({entry, rank, row, std::min(row + step, row_end)});
  }

  const PieceTable& table_;
  int64_t at_;
  int64_t last_;
  int64_t max_elements_;
  std::vector<WeightsBlock> blocks_;
};

}  // namespace

std::vector<WeightsBlock> cover_tensor(const PieceTable& table, int64_t first, int64_t last,
                                       int64_t max_elements) {
  return TensorCover(table, first, last, max_elements).cover();
}

}  // namespace phalanx
