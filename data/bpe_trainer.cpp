// Incremental training: a merge touches only the words that hold its pair, and a queue that
// corrects counts when they surface finds the next pair, so no merge rescans the words.
#include "data/bpe_trainer.h"

#include <algorithm>
#include <array>

#include "data/byte_level.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

/// Longer words (lines of dashes, encoded binaries) are cut for training: every merge walks over
/// all symbols of a word, so one word of megabytes would make training quadratic.
constexpr size_t kLongestWord = 1024;

}  // namespace

BpeTrainer::BpeTrainer(const WordCounts& words) {
  for (const uint8_t byte : bytes_in_byte_level_order()) {
    tokens_.emplace_back(1, static_cast<char>(byte));
    token_ids_.emplace(tokens_.back(), static_cast<int32_t>(tokens_.size() - 1));
  }
  for (const auto& [bytes, count] : words)
    for (size_t at = 0; at < bytes.size(); at += kLongestWord)
      add_word(std::string_view(bytes).substr(at, kLongestWord), count);
  check(words_.size() < INT32_MAX, words_.size(), " different words are too many to train on");
  for (const auto& [pair, state] : pairs_) queue_.push({state.count, pair});
  grown_ = {};  // the first counts were many
}

void BpeTrainer::add_word(std::string_view bytes, int64_t count) {
  const Word word{symbols_.size(), bytes.size(), count};
  for (const char byte : bytes) symbols_.push_back(token_ids_.at(std::string(1, byte)));
  const auto index = static_cast<int32_t>(words_.size());
  for (size_t i = word.begin; i + 1 < symbols_.size(); ++i)
    count_pair(symbols_[i], symbols_[i + 1], count, index);
  words_.push_back(word);
}

void BpeTrainer::count_pair(int32_t left, int32_t right, int64_t change, int32_t word) {
  Pair& pair = pairs_[key(left, right)];
  pair.count += change;
  if (change < 0) return;
  if (pair.words.empty() || pair.words.back() != word) pair.words.push_back(word);
  grown_.push_back(key(left, right));
}

int32_t BpeTrainer::merged_token(int32_t left, int32_t right) {
  std::string bytes = tokens_[static_cast<size_t>(left)] + tokens_[static_cast<size_t>(right)];
  const auto [found, is_new] = token_ids_.emplace(bytes, static_cast<int32_t>(tokens_.size()));
  if (is_new) tokens_.push_back(std::move(bytes));
  return found->second;
}

void BpeTrainer::train(int64_t num_tokens) {
  while (static_cast<int64_t>(tokens_.size()) < num_tokens && !queue_.empty()) {
    const Candidate best = queue_.top();
    queue_.pop();
    const auto pair = pairs_.find(best.pair);
    if (pair == pairs_.end() || pair->second.count < 1) continue;
    if (pair->second.count != best.count) {  // fell since it was queued
      queue_.push({pair->second.count, best.pair});
      continue;
    }
    const auto left = static_cast<int32_t>(best.pair >> 32);
    const auto right = static_cast<int32_t>(best.pair);
    merges_.push_back({left, right, merged_token(left, right)});
    apply(merges_.back());
  }
}

void BpeTrainer::apply(const BpeMerge& merge) {
  const std::vector<int32_t> words = std::move(pairs_[key(merge.left, merge.right)].words);
  for (const int32_t word : words) apply_in_word(merge, word);
  pairs_.erase(key(merge.left, merge.right));
  std::ranges::sort(grown_);
  const auto repeated = std::ranges::unique(grown_);
  grown_.erase(repeated.begin(), repeated.end());
  for (const uint64_t pair : grown_)
    if (const auto found = pairs_.find(pair); found != pairs_.end() && found->second.count > 0)
      queue_.push({found->second.count, pair});
  grown_.clear();
}

void BpeTrainer::apply_in_word(const BpeMerge& merge, int32_t index) {
  Word& word = words_[static_cast<size_t>(index)];
  int32_t* symbols = symbols_.data() + word.begin;
  size_t written = 0;
  for (size_t read = 0; read < word.size; ++read) {
    const bool match =
        read + 1 < word.size && symbols[read] == merge.left && symbols[read + 1] == merge.right;
    if (!match) {
      symbols[written++] = symbols[read];
      continue;
    }
    count_pair(merge.left, merge.right, -word.count, index);
    if (written > 0) {
      count_pair(symbols[written - 1], merge.left, -word.count, index);
      count_pair(symbols[written - 1], merge.result, word.count, index);
    }
    ++read;  // over the right symbol
    if (read + 1 < word.size) {
      count_pair(merge.right, symbols[read + 1], -word.count, index);
      count_pair(merge.result, symbols[read + 1], word.count, index);
    }
    symbols[written++] = merge.result;
  }
  word.size = written;
}

}  // namespace phalanx
