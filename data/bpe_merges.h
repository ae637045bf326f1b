// Byte-pair merging of one word: Sennrich et al. 2016 (arXiv:1508.07909). Of all adjacent pairs
// that have a merge, the one with the lowest rank, leftmost first, is replaced until none is left.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace phalanx {

/// Two neighbouring tokens and the token that replaces them.
struct BpeMerge {
  int32_t left;
  int32_t right;
  int32_t result;
};

/// A word while it is merged: a linked list over its symbols and a heap of candidate merges.
class BpeWord {
 private:
  friend class BpeMerges;
  struct Symbol {
    int32_t id;         // -1 once merged into its left neighbour
    uint32_t previous;  // kNone at the ends
    uint32_t next;
  };
  std::vector<Symbol> symbols_;
  std::vector<uint64_t> heap_;  // rank << 32 | position: the order in which merges happen
};

class BpeMerges {
 public:
  /// `merges` in order of rank. Of two merges of the same pair the later one counts.
  explicit BpeMerges(std::vector<BpeMerge> merges);

  /// Appends to `ids` what is left of `symbols` when no merge applies any more. O(n log n).
  void apply(std::span<const int32_t> symbols, BpeWord& word, std::vector<int32_t>& ids) const;

  std::span<const BpeMerge> merges() const { return merges_; }

 private:
  /// Rank of a pair's merge, -1 if it has none.
  int32_t rank(int32_t left, int32_t right) const;
  size_t slot(int32_t left, int32_t right) const;
  void offer(BpeWord& word, uint32_t position) const;
  void merge_at(BpeWord& word, uint32_t position, const BpeMerge& merge) const;

  std::vector<BpeMerge> merges_;     // by rank
  std::vector<int32_t> rank_table_;  // open addressing by pair, power-of-two size, -1 is free
};

}  // namespace phalanx
