// Covering a tensor band by band (all pieces of a band have the same columns), cell by cell down
// the rows, a cell lying between two neighbouring cuts of any piece.
#include "core/checkpoint/save_plan.h"

#include <algorithm>
#include <map>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

[[noreturn]] void fail_incomplete(const Piece& piece, int64_t row, int64_t column) {
  fail("tensor ", piece.name, " ", piece.global_shape.to_string(), " cannot be written: ",
       "the pieces of the ranks leave a gap or differ in their columns at row ", row, ", column ",
       column, "; its registration does not fit the mesh");
}

/// Rows [begin, end) of a band, all of which the same entries hold.
struct Cell {
  int64_t row_begin;
  int64_t row_end;
  std::vector<int64_t> entries;
};

class SavePlanner {
 public:
  explicit SavePlanner(const PieceTable& table) : table_(table) {}

  std::vector<PlannedBlock> plan() {
    const auto num_entries = std::ssize(table_.entries());
    for (int64_t first = 0; first < num_entries;) {
      int64_t last = first;
      while (last < num_entries && piece(last).name == piece(first).name) ++last;
      cover_tensor(first, last);
      first = last;
    }
    share_out();
    return std::move(blocks_);
  }

 private:
  const Piece& piece(int64_t i) const { return table_.entries()[static_cast<size_t>(i)].piece; }

  void cover_tensor(int64_t first, int64_t last) {
    const Piece& any = piece(first);
    const int64_t columns = any.global_shape.rank() == 2 ? any.global_shape[1] : 1;
    int64_t column = 0;
    while (first < last) {
      if (piece(first).offset[1] != column) fail_incomplete(any, 0, column);
      int64_t end = first;
      while (end < last && piece(end).offset[1] == column) ++end;
      cover_band(first, end);
      column += piece(first).size[1];
      first = end;
    }
    if (column != columns) fail_incomplete(any, 0, column);
  }

  /// Entries [first, last) begin at the same column.
  void cover_band(int64_t first, int64_t last) {
    const Piece& band = piece(first);
    std::vector<int64_t> cuts;
    for (int64_t i = first; i < last; ++i) {
      if (piece(i).size[1] != band.size[1]) fail_incomplete(band, 0, band.offset[1]);
      cuts.push_back(piece(i).offset[0]);
      cuts.push_back(piece(i).offset[0] + piece(i).size[0]);
    }
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    if (cuts.front() != 0 || cuts.back() != band.global_shape[0])
      fail_incomplete(band, cuts.front() != 0 ? 0 : cuts.back(), band.offset[1]);
    int64_t begin_of_active = first;  // entries are by row, so those before it have ended
    for (size_t c = 0; c + 1 < cuts.size(); ++c) {
      Cell cell{cuts[c], cuts[c + 1], {}};
      while (begin_of_active < last && end_of(begin_of_active) <= cell.row_begin) ++begin_of_active;
      for (int64_t i = begin_of_active; i < last && piece(i).offset[0] <= cell.row_begin; ++i)
        if (end_of(i) >= cell.row_end) cell.entries.push_back(i);
      if (cell.entries.empty()) fail_incomplete(band, cell.row_begin, band.offset[1]);
      add(cell);
    }
  }
  int64_t end_of(int64_t i) const { return piece(i).offset[0] + piece(i).size[0]; }

  void add(const Cell& cell) {
    const auto& entry = table_.entries()[static_cast<size_t>(cell.entries.front())];
    const bool shared = cell.entries.size() > 1 || table_.has_replicas(entry);
    PlannedBlock block{cell.entries.front(), table_.first_holder(entry), cell.row_begin,
                       cell.row_end};
    if (shared)
      shared_.emplace_back(blocks_.size(), cell.entries);
    else
      load_[block.rank] += elements(block);
    blocks_.push_back(block);
  }

  int64_t elements(const PlannedBlock& block) const {
    return (block.row_end - block.row_begin) * piece(block.entry).size[1];
  }

  // The largest first, so that the small ones even out what these leave.
  void share_out() {
    std::stable_sort(shared_.begin(), shared_.end(), [&](const auto& a, const auto& b) {
      return elements(blocks_[a.first]) > elements(blocks_[b.first]);
    });
    for (const auto& [index, entries] : shared_) {
      PlannedBlock& block = blocks_[index];
      for (const int64_t entry : entries)
        for (const int rank : table_.holders(table_.entries()[static_cast<size_t>(entry)]))
          if (load_[rank] < load_[block.rank]) {
            block.rank = rank;
            block.entry = entry;
          }
      load_[block.rank] += elements(block);
    }
  }

  const PieceTable& table_;
  std::vector<PlannedBlock> blocks_;
  std::vector<std::pair<size_t, std::vector<int64_t>>> shared_;  // block, entries that hold it
  std::map<int, int64_t> load_;                                  // rank -> elements
};

}  // namespace

std::array<Tensor, kNumParts> parts_of(const OptimizerShard& shard) {
  return {shard.master, shard.exp_avg, shard.exp_avg_sq};
}

std::vector<PlannedBlock> plan_save(const PieceTable& table) {
  return SavePlanner(table).plan();
}

}  // namespace phalanx
