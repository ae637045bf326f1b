// What defines a byte-level BPE tokenizer, as its files state it and before it is checked: what the
// readers of the file formats produce and BpeTokenizer is built from.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "data/added_tokens.h"
#include "data/split_pattern.h"

namespace phalanx {

struct BpeDefinition {
  std::string source;                                       // the file's name, for errors
  std::vector<std::pair<std::string, int64_t>> vocabulary;  // token in the byte-level alphabet, id
  std::vector<std::pair<std::string, std::string>> merges;  // by rank, in the byte-level alphabet
  std::vector<AddedToken> added_tokens;
  bool nfc = false;               // normalize text to NFC first
  std::vector<SplitStep> splits;  // how text is cut into words, one step after the other
  bool add_prefix_space = false;  // after `splits`: a space before each piece that has none
  bool split_like_gpt2 = false;   // after that: GPT-2's pattern
  bool ignore_merges = false;     // a word that is a token is that token, whatever the merges say
};

}  // namespace phalanx
