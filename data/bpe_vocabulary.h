// The checked vocabulary of a BPE tokenizer: every id below its size has exactly one token.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/bpe_definition.h"
#include "data/bpe_merges.h"

namespace phalanx {

class BpeVocabulary {
 public:
  /// Views into `definition`, which must outlive this. Throws UsageError as BpeTokenizer states.
  explicit BpeVocabulary(const BpeDefinition& definition);

  /// By id: the token as its file spells it.
  const std::vector<std::string_view>& texts() const { return texts_; }
  /// By id: the bytes it decodes to.
  std::vector<std::string> token_bytes() const;
  /// The token of each byte, -1 for a byte that has none because UTF-8 never holds it.
  std::array<int32_t, 256> byte_ids() const;
  std::vector<BpeMerge> merges() const;
  /// Ids by the bytes they stand for, without tokens outside the byte-level alphabet.
  std::unordered_map<std::string, int32_t> ids_by_bytes() const;
  /// The token that ends documents, -1 if none is known as such.
  int32_t end_of_document() const;

 private:
  void collect();
  int32_t id_in_merge(const std::string& token, size_t rank) const;

  const BpeDefinition& definition_;
  std::vector<std::string_view> texts_;
  std::unordered_map<std::string_view, int32_t> ids_;
};

}  // namespace phalanx
