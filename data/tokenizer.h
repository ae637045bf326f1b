// Text to token ids and back: the interface every tokenizer has, and how options choose one.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/enum_names.h"
#include "kernels/base/fields.h"

namespace phalanx {

/// All const members may be called from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Appends the ids of `text`, which may hold any bytes; bytes that are not UTF-8 survive a round
  /// trip.
  virtual void encode(std::string_view text, std::vector<int32_t>& ids) const = 0;

  /// The bytes of `ids`; throws Error on an id outside the vocabulary.
  virtual std::string decode(std::span<const int32_t> ids) const = 0;

  /// The largest id + 1.
  virtual int64_t vocab_size() const = 0;

  /// The id that ends a document, -1 if the tokenizer has none.
  virtual int32_t end_of_document() const = 0;

  /// XXH3-128, in hex, of everything that decides which ids a text gets.
  virtual std::string content_hash() const = 0;
};

enum class TokenizerType { bytes, hugging_face, gpt2_bpe };

template <>
struct EnumNames<TokenizerType> {
  static constexpr std::pair<TokenizerType, std::string_view> table[] = {
      {TokenizerType::bytes, "Bytes"},
      {TokenizerType::hugging_face, "HuggingFaceTokenizer"},
      {TokenizerType::gpt2_bpe, "GPT2BPETokenizer"}};
};

struct TokenizerConfig {
  TokenizerType type = TokenizerType::bytes;
  std::string model = {};
  std::string vocab_file = {};
  std::string merge_file = {};
};

template <class Config, class Visitor>
requires ConfigOf<Config, TokenizerConfig>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Tokenizer");
  visit("tokenizer-type", config.type, "how text becomes token ids");
  visit("tokenizer-model", config.model, "tokenizer.json, for HuggingFaceTokenizer");
  visit("vocab-file", config.vocab_file, "vocabulary (JSON), for GPT2BPETokenizer");
  visit("merge-file", config.merge_file, "merges (text), for GPT2BPETokenizer");
}

/// Throws UsageError where an option is missing or a file cannot be used.
std::unique_ptr<Tokenizer> make_tokenizer(const TokenizerConfig& config);

}  // namespace phalanx
