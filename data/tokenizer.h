// Tokenizer: text to token ids and back.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  /// Appends the ids of `text`; may be called from several threads at once.
  virtual void encode(std::string_view text, std::vector<int32_t>& ids) const = 0;
  virtual std::string decode(std::span<const int32_t> ids) const = 0;
  virtual int64_t vocab_size() const = 0;
  virtual int32_t end_of_document() const = 0;
  virtual std::string content_hash() const = 0;
};

}  // namespace phalanx
