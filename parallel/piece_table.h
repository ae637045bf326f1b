// PieceTable: which rank of a group holds which rectangle of which tensor, known to every rank.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"
#include "parallel/process_group.h"

namespace phalanx {

struct Parameter;
class ParameterStore;

/// A rectangle of a global tensor; a vector is a matrix of one column.
struct Piece {
  std::string name;
  Shape global_shape;               // 1-D or 2-D
  std::array<int64_t, 2> offset{};  // first row and column
  std::array<int64_t, 2> size{};    // rows and columns

  int64_t numel() const { return size[0] * size[1]; }
  bool operator==(const Piece&) const = default;
};

/// Whole rows [row_begin, row_end) of a rank's part of `parameter`.
Piece piece_of(const Parameter& parameter, int64_t row_begin, int64_t row_end);
/// One piece per parameter, in registration order.
std::vector<Piece> pieces_of(const ParameterStore& store);

/// Immutable. Its memory is that of the distinct lists of pieces, not of ranks times parameters:
/// data-parallel replicas have one list.
class PieceTable {
 public:
  struct Entry {
    Piece piece;
    std::vector<int> lists;  // places in the distinct lists that have it, ascending
  };

  /// Collective over `group`: everybody learns everybody's `own` pieces in two all-gathers. Throws,
  /// on every rank, if two ranks disagree about a tensor's global shape.
  PieceTable(const std::vector<Piece>& own, ProcessGroup& group);

  /// The distinct pieces of all ranks, by name, then column, then row.
  const std::vector<Entry>& entries() const { return entries_; }
  /// The ranks that hold it, ascending.
  std::vector<int> holders(const Entry& entry) const;
  /// The lowest of them.
  int first_holder(const Entry& entry) const;
  bool has_replicas(const Entry& entry) const;
  /// Place in `entries` of a piece that some rank announced.
  int64_t find(const Piece& piece) const;

 private:
  void check_shapes() const;

  std::vector<Entry> entries_;
  std::vector<int> list_of_rank_;
  std::vector<std::vector<int>> ranks_of_list_;  // ascending; lists in order of their first rank
};

}  // namespace phalanx
