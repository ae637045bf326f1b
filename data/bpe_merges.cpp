// Merging with a heap, so that a word of megabytes takes n log n steps and not n squared.
#include "data/bpe_merges.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr uint32_t kNone = UINT32_MAX;

uint64_t pair_hash(int32_t left, int32_t right) {
  const uint64_t key =
      static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  const uint64_t mixed = key * 0x9E3779B97F4A7C15U;  // Fibonacci hashing, 2^64 / golden ratio
  return mixed ^ mixed >> 32;
}

}  // namespace

BpeMerges::BpeMerges(std::vector<BpeMerge> merges)
    : merges_(std::move(merges)), rank_table_(std::bit_ceil(2 * merges_.size() + 2), -1) {
  check(merges_.size() < INT32_MAX, merges_.size(), " merges are more than 2^31 - 2");
  for (size_t i = 0; i < merges_.size(); ++i)
    rank_table_[slot(merges_[i].left, merges_[i].right)] = static_cast<int32_t>(i);
}

size_t BpeMerges::slot(int32_t left, int32_t right) const {
  const size_t mask = rank_table_.size() - 1;
  size_t at = pair_hash(left, right) & mask;
  for (;; at = (at + 1) & mask) {
    const int32_t found = rank_table_[at];
    if (found < 0) return at;
    const BpeMerge& merge = merges_[static_cast<size_t>(found)];
    if (merge.left == left && merge.right == right) return at;
  }
}

int32_t BpeMerges::rank(int32_t left, int32_t right) const {
  return rank_table_[slot(left, right)];
}

void BpeMerges::offer(BpeWord& word, uint32_t position) const {
  const BpeWord::Symbol& symbol = word.symbols_[position];
  if (symbol.next == kNone) return;
  const int32_t found = rank(symbol.id, word.symbols_[symbol.next].id);
  if (found >= 0) word.heap_.push_back(static_cast<uint64_t>(found) << 32 | position);
}

void BpeMerges::merge_at(BpeWord& word, uint32_t position, const BpeMerge& merge) const {
  BpeWord::Symbol& left = word.symbols_[position];
  BpeWord::Symbol& right = word.symbols_[left.next];
  left.id = merge.result;
  left.next = right.next;
  right.id = -1;
  if (left.next != kNone) word.symbols_[left.next].previous = position;
  for (const uint32_t changed : {left.previous, position}) {
    const size_t size = word.heap_.size();
    if (changed != kNone) offer(word, changed);
    if (word.heap_.size() > size) std::ranges::push_heap(word.heap_, std::greater{});
  }
}

void BpeMerges::apply(std::span<const int32_t> symbols, BpeWord& word,
                      std::vector<int32_t>& ids) const {
  check(symbols.size() < kNone, "a word of ", symbols.size(), " bytes is longer than 4 GiB");
  const auto size = static_cast<uint32_t>(symbols.size());
  word.symbols_.clear();
  word.heap_.clear();
  for (uint32_t i = 0; i < size; ++i)
    word.symbols_.push_back({symbols[i], i == 0 ? kNone : i - 1, i + 1 == size ? kNone : i + 1});
  for (uint32_t i = 0; i < size; ++i) offer(word, i);
  std::ranges::make_heap(word.heap_, std::greater{});
  while (!word.heap_.empty()) {
    const uint64_t best = word.heap_.front();
    std::ranges::pop_heap(word.heap_, std::greater{});
    word.heap_.pop_back();
    const BpeMerge& merge = merges_[best >> 32];
    const auto position = static_cast<uint32_t>(best);
    const BpeWord::Symbol& left = word.symbols_[position];
    if (left.id != merge.left || left.next == kNone) continue;  // merged since it was offered
    if (word.symbols_[left.next].id != merge.right) continue;
    merge_at(word, position, merge);
  }
  for (const BpeWord::Symbol& symbol : word.symbols_)
    if (symbol.id >= 0) ids.push_back(symbol.id);
}

}  // namespace phalanx
