// Byte-level BPE: normalize, find added tokens, split into words, merge the bytes of each word.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "data/added_tokens.h"
#include "data/bpe_definition.h"
#include "data/bpe_merges.h"
#include "data/split_pattern.h"
#include "data/tokenizer.h"

namespace phalanx {

class BpeVocabulary;

/// Ids equal those of the Hugging Face library's encode(text, add_special_tokens=False).
///
/// Text that is not UTF-8, which that library refuses, is cut into its valid runs and single
/// invalid bytes; each run is encoded like a text of its own, each invalid byte becomes the token
/// of that byte. So decode(encode(text)) == text for all bytes, unless the tokenizer itself is
/// lossy: an NFC normalizer returns the NFC of each run, add_prefix_space returns the added spaces,
/// lstrip/rstrip tokens swallow spaces, a Removed split drops what it matches, and an invalid byte
/// for which the vocabulary has no token (GPT-NeoX's lacks the 13 bytes that UTF-8 never holds)
/// becomes U+FFFD.
class BpeTokenizer : public Tokenizer {
 public:
  /// Throws UsageError that names the file and the value at fault: ids that are missing or given
  /// twice, merges of unknown tokens, a byte without a token, a pattern that does not compile.
  explicit BpeTokenizer(const BpeDefinition& definition);
  ~BpeTokenizer() override;

  void encode(std::string_view text, std::vector<int32_t>& ids) const override;
  std::string decode(std::span<const int32_t> ids) const override;
  int64_t vocab_size() const override { return static_cast<int64_t>(token_bytes_.size()); }
  int32_t end_of_document() const override { return end_of_document_; }
  std::string content_hash() const override { return content_hash_; }

 private:
  struct Scratch;  // a thread's buffers and word cache
  class BorrowedScratch;

  BpeTokenizer(const BpeDefinition& definition, const BpeVocabulary& vocabulary);

  void encode_valid(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const;
  void encode_piece(std::string_view text, size_t step, Scratch& scratch,
                    std::vector<int32_t>& ids) const;
  void encode_word(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;

  std::vector<std::string> token_bytes_;               // by id: what decode writes
  std::array<int32_t, 256> byte_ids_{};                // the token of each byte, -1: it has none
  std::unordered_map<std::string, int32_t> word_ids_;  // whole words, only for ignore_merges
  BpeMerges merges_;
  AddedTokenMatcher raw_tokens_;         // found in the text as it is
  AddedTokenMatcher normalized_tokens_;  // found in the normalized text
  bool nfc_;
  std::vector<SplitPattern> splits_;
  size_t prefix_space_step_;  // before this step a space is added; behind the last one: never
  int32_t end_of_document_;
  std::string content_hash_;

  mutable std::mutex mutex_;                            // guards idle_
  mutable std::vector<std::unique_ptr<Scratch>> idle_;  // kept warm from call to call
};

}  // namespace phalanx
