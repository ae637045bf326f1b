// Learns BPE merges from counted words: again and again the most frequent adjacent pair becomes a
// new token (Sennrich et al. 2016, arXiv:1508.07909, algorithm 1).
#pragma once

#include <cstdint>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/bpe_merges.h"

namespace phalanx {

/// Word counts keep no order, so they can be summed over threads.
using WordCounts = std::unordered_map<std::string, int64_t>;

/// The trainer's vocabulary: 256 bytes in the order of the byte-level alphabet, then merged tokens.
/// Of equally frequent pairs the one with the smaller ids is merged first; with this numbering the
/// merges are those that the Hugging Face library's trainer learns from the same words.
class BpeTrainer {
 public:
  explicit BpeTrainer(const WordCounts& words);

  /// Merges until there are `num_tokens` tokens or no pairs are left.
  void train(int64_t num_tokens);

  const std::vector<std::string>& tokens() const { return tokens_; }  // raw bytes, by id
  const std::vector<BpeMerge>& merges() const { return merges_; }     // by rank

 private:
  struct Word {
    size_t begin;  // in symbols_
    size_t size;
    int64_t count;
  };
  struct Pair {
    int64_t count = 0;           // over all words
    std::vector<int32_t> words;  // every word that holds the pair, and some that no longer do
  };
  struct Candidate {
    int64_t count;
    uint64_t pair;
    bool operator<(const Candidate& other) const {  // the queue's top is the largest
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };

  static uint64_t key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  }
  void add_word(std::string_view bytes, int64_t count);
  /// Changes a pair's count because of one word.
  void count_pair(int32_t left, int32_t right, int64_t change, int32_t word);
  /// The id of the token that `left` and `right` make.
  int32_t merged_token(int32_t left, int32_t right);
  void apply(const BpeMerge& merge);
  void apply_in_word(const BpeMerge& merge, int32_t index);

  std::vector<int32_t> symbols_;  // all words, each shrinking in place
  std::vector<Word> words_;
  std::unordered_map<uint64_t, Pair> pairs_;
  std::vector<uint64_t> grown_;           // pairs whose count went up during one merge
  std::priority_queue<Candidate> queue_;  // counts may be out of date, never too small
  std::vector<std::string> tokens_;
  std::unordered_map<std::string, int32_t> token_ids_;
  std::vector<BpeMerge> merges_;
};

}  // namespace phalanx
