// Lists of pieces as bytes, gathered without repetition, and the sorted table made of them.
#include "parallel/piece_table.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <tuple>
#include <utility>

#include "parallel/parameter.h"

namespace phalanx {
namespace {

auto order_of(const Piece& piece) {
  return std::tuple(std::string_view(piece.name), piece.offset[1], piece.offset[0], piece.size[1],
                    piece.size[0]);
}

class Writer {
 public:
  void add(int64_t number) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&number);
    bytes_.insert(bytes_.end(), bytes, bytes + sizeof number);
  }
  void add(const std::string& text) {
    add(static_cast<int64_t>(text.size()));
    bytes_.insert(bytes_.end(), text.begin(), text.end());
  }
  std::vector<uint8_t> take() { return std::move(bytes_); }

 private:
  std::vector<uint8_t> bytes_;
};

/// Reads what a Writer of the same job wrote.
class Reader {
 public:
  Reader(const uint8_t* begin, const uint8_t* end) : at_(begin), end_(end) {}
  bool at_end() const { return at_ == end_; }
  int64_t number() {
    int64_t value = 0;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  std::string text() {
    const int64_t size = number();
    return {reinterpret_cast<const char*>(take(size)), static_cast<size_t>(size)};
  }

 private:
  const uint8_t* take(int64_t size) {
    check(0 <= size && size <= end_ - at_, "a rank's list of parameters arrived cut short");
    return std::exchange(at_, at_ + size);
  }
  const uint8_t* at_;
  const uint8_t* end_;
};

std::vector<uint8_t> to_bytes(const std::vector<Piece>& pieces) {
  Writer writer;
  for (const Piece& piece : pieces) {
    writer.add(piece.name);
    writer.add(piece.global_shape.rank());
    for (int dim = 0; dim < piece.global_shape.rank(); ++dim) writer.add(piece.global_shape[dim]);
    for (const size_t dim : {0U, 1U}) {
      writer.add(piece.offset[dim]);
      writer.add(piece.size[dim]);
    }
  }
  return writer.take();
}

Piece read_piece(Reader& reader) {
  Piece piece{.name = reader.text()};
  const bool vector = reader.number() == 1;
  const int64_t rows = reader.number();
  piece.global_shape = vector ? Shape{rows} : Shape{rows, reader.number()};
  for (const size_t dim : {0U, 1U}) {
    piece.offset[dim] = reader.number();
    piece.size[dim] = reader.number();
  }
  return piece;
}

/// Every distinct byte string of the ranks once, in the order of the first rank that has it.
struct Gathered {
  std::vector<int> list_of_rank;
  std::vector<std::vector<uint8_t>> lists;
};

// Ranks first tell size and hash; then only the first of those with equal ones sends its bytes.
Gathered gather_distinct(const std::vector<uint8_t>& own, ProcessGroup& group) {
  const auto num_ranks = static_cast<size_t>(group.size());
  using Key = std::array<int64_t, 2>;
  const Key key{static_cast<int64_t>(own.size()),
                static_cast<int64_t>(XXH3_64bits(own.data(), own.size()))};
  std::vector<int64_t> flat(2 * num_ranks);
  group.all_gather(cpu_tensor(flat.data(), {group.size(), 2}), cpu_tensor(key.data(), {1, 2}));

  Gathered result;
  std::map<Key, int> list_of_key;
  std::vector<int64_t> counts(num_ranks, 0);
  int64_t total = 0;
  int64_t own_begin = 0;
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    const Key theirs{flat[2 * rank], flat[2 * rank + 1]};
    const auto [place, is_new] =
        list_of_key.try_emplace(theirs, static_cast<int>(list_of_key.size()));
    result.list_of_rank.push_back(place->second);
    if (rank == static_cast<size_t>(group.rank())) own_begin = total;
    if (is_new) total += counts[rank] = theirs[0];
  }
  std::vector<uint8_t> bytes(static_cast<size_t>(total));
  if (counts[static_cast<size_t>(group.rank())] > 0)
    std::copy(own.begin(), own.end(), bytes.begin() + own_begin);
  group.all_gather_in_place(cpu_tensor(bytes.data(), {total}), counts);

  result.lists.resize(list_of_key.size());
  auto at = bytes.begin();
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    auto& list = result.lists[static_cast<size_t>(result.list_of_rank[rank])];
    if (counts[rank] > 0) list.assign(at, at + counts[rank]);
    at += counts[rank];
  }
  return result;
}

}  // namespace

Piece piece_of(const Parameter& parameter, int64_t row_begin, int64_t row_end) {
  return {.name = parameter.spec.name,
          .global_shape = parameter.spec.global_shape,
          .offset = {parameter.offset[0] + row_begin, parameter.offset[1]},
          .size = {row_end - row_begin, parameter.matrix_shape()[1]}};
}

std::vector<Piece> pieces_of(const ParameterStore& store) {
  std::vector<Piece> pieces;
  for (int64_t i = 0; i < store.size(); ++i)
    pieces.push_back(piece_of(store[i], 0, store[i].shape[0]));
  return pieces;
}

PieceTable::PieceTable(const std::vector<Piece>& own, ProcessGroup& group) {
  const Gathered gathered = gather_distinct(to_bytes(own), group);
  list_of_rank_ = gathered.list_of_rank;
  ranks_of_list_.resize(gathered.lists.size());
  for (size_t rank = 0; rank < list_of_rank_.size(); ++rank)
    ranks_of_list_[static_cast<size_t>(list_of_rank_[rank])].push_back(static_cast<int>(rank));

  for (size_t list = 0; list < gathered.lists.size(); ++list) {
    const std::vector<uint8_t>& bytes = gathered.lists[list];
    for (Reader reader(bytes.data(), bytes.data() + bytes.size()); !reader.at_end();)
      entries_.push_back({read_piece(reader), {static_cast<int>(list)}});
  }
  // Stable, so that each entry's lists stay ascending when equal pieces become one entry.
  std::stable_sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return order_of(a.piece) < order_of(b.piece);
  });
  size_t kept = 0;
  for (size_t i = 1; i < entries_.size(); ++i) {
    if (entries_[i].piece == entries_[kept].piece)
      entries_[kept].lists.push_back(entries_[i].lists.front());
    else if (++kept != i)
      entries_[kept] = std::move(entries_[i]);
  }
  if (!entries_.empty()) entries_.resize(kept + 1);
  check_shapes();
}

void PieceTable::check_shapes() const {
  for (size_t i = 1; i < entries_.size(); ++i) {
    const Piece& before = entries_[i - 1].piece;
    const Piece& piece = entries_[i].piece;
    if (before.name != piece.name || before.global_shape == piece.global_shape) continue;
    fail("ranks disagree about tensor ", piece.name, ": rank ", first_holder(entries_[i - 1]),
         " has it as ", before.global_shape.to_string(), ", rank ", first_holder(entries_[i]),
         " as ", piece.global_shape.to_string(), "; all ranks must be given the same model");
  }
}

std::vector<int> PieceTable::holders(const Entry& entry) const {
  std::vector<int> ranks;
  for (const int list : entry.lists) {
    const auto& members = ranks_of_list_[static_cast<size_t>(list)];
    ranks.insert(ranks.end(), members.begin(), members.end());
  }
  std::sort(ranks.begin(), ranks.end());
  return ranks;
}

int PieceTable::first_holder(const Entry& entry) const {
  return ranks_of_list_[static_cast<size_t>(entry.lists.front())].front();
}

bool PieceTable::has_replicas(const Entry& entry) const {
  return entry.lists.size() > 1 ||
         ranks_of_list_[static_cast<size_t>(entry.lists.front())].size() > 1;
}

int64_t PieceTable::find(const Piece& piece) const {
  const auto place = std::lower_bound(
      entries_.begin(), entries_.end(), piece,
      [](const Entry& a, const Piece& b) { return order_of(a.piece) < order_of(b); });
  check(place != entries_.end() && place->piece == piece, "no rank announced a piece of tensor ",
        piece.name, " at [", piece.offset[0], ", ", piece.offset[1], "]");
  return place - entries_.begin();
}

}  // namespace phalanx
