// GPT-2's files as a BpeDefinition.
#include "data/tokenizer_gpt2.h"

#include <nlohmann/json.hpp>

#include "data/bpe_definition.h"
#include "data/tokenizer_bpe.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

void read_vocabulary(std::string_view text, const std::string& name, BpeDefinition& definition) {
  try {
    const auto document = nlohmann::json::parse(text);
    check_usage(document.is_object(), name, ": the vocabulary is not a JSON object of tokens");
    for (const auto& [token, id] : document.items()) {
      check_usage(id.is_number_integer(), name, ": the id of token '", token,
                  "' is not a whole number");
      definition.vocabulary.emplace_back(token, id.get<int64_t>());
    }
  } catch (const nlohmann::json::exception& error) {
    throw UsageError(name + ": not a complete vocabulary: " + error.what());
  }
}

void read_merges(std::string_view text, const std::string& name, BpeDefinition& definition) {
  for (int64_t number = 1; !text.empty(); ++number) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with("#version")) continue;
    const size_t space = line.find(' ');
    check_usage(space != 0 && space < line.size() - 1 &&
                    line.find(' ', space + 1) == std::string_view::npos,
                name, ": line ", number, " ('", line,
                "') is not two tokens with one space between them");
    definition.merges.emplace_back(line.substr(0, space), line.substr(space + 1));
  }
}

}  // namespace

std::unique_ptr<Tokenizer> parse_gpt2_tokenizer(std::string_view vocabulary_json,
                                                const std::string& vocabulary_name,
                                                std::string_view merges_text,
                                                const std::string& merges_name) {
  BpeDefinition definition;
  definition.source = vocabulary_name + " with " + merges_name;
  definition.split_like_gpt2 = true;
  read_vocabulary(vocabulary_json, vocabulary_name, definition);
  read_merges(merges_text, merges_name, definition);
  return std::make_unique<BpeTokenizer>(definition);
}

}  // namespace phalanx
