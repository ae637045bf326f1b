// The tokenizer without a vocabulary: each byte is its own id, and 256 ends a document.
#pragma once

#include "data/tokenizer.h"

namespace phalanx {

class BytesTokenizer : public Tokenizer {
 public:
  static constexpr int32_t kEndOfDocument = 256;

  void encode(std::string_view text, std::vector<int32_t>& ids) const override;
  /// End-of-document ids decode to nothing: they stand for no byte.
  std::string decode(std::span<const int32_t> ids) const override;
  int64_t vocab_size() const override { return kEndOfDocument + 1; }
  int32_t end_of_document() const override { return kEndOfDocument; }
  std::string content_hash() const override;
};

}  // namespace phalanx
