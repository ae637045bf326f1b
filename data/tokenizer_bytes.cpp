// Bytes as ids.
#include "data/tokenizer_bytes.h"

#include "data/tokenizer_hash.h"
#include "kernels/base/error.h"

namespace phalanx {

void BytesTokenizer::encode(std::string_view text, std::vector<int32_t>& ids) const {
  // insert grows by factors, so that many short texts into one vector stay linear.
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  ids.insert(ids.end(), bytes, bytes + text.size());
}

std::string BytesTokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  text.reserve(ids.size());
  for (const int32_t id : ids) {
    check(id >= 0 && id <= kEndOfDocument, "token id ", id, " is outside the vocabulary 0..",
          kEndOfDocument, ": was it made by another tokenizer?");
    if (id != kEndOfDocument) text.push_back(static_cast<char>(id));
  }
  return text;
}

std::string BytesTokenizer::content_hash() const {
  TokenizerHash hash;
  hash.add("bytes");
  return hash.hex();
}

}  // namespace phalanx
