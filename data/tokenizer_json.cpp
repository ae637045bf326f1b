// From the JSON document to a BpeDefinition, section by section.
#include "data/tokenizer_json.h"

#include <nlohmann/json.hpp>

#include "data/bpe_definition.h"
#include "data/tokenizer_bpe.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

using Json = nlohmann::json;

class TokenizerJsonReader {
 public:
  explicit TokenizerJsonReader(const std::string& source) { definition_.source = source; }

  BpeDefinition read(const Json& document) {
    require(document.is_object() && document.contains("model"),
            "this is no tokenizer.json: it has no \"model\"");
    read_model(document.at("model"));
    read_added_tokens(section(document, "added_tokens"));
    read_normalizer(section(document, "normalizer"));
    read_pre_tokenizer(section(document, "pre_tokenizer"));
    require(byte_level_, "the pre_tokenizer has no ByteLevel step; only byte-level BPE tokenizers",
            " are supported");
    return std::move(definition_);
  }

 private:
  template <class... Args>
  void require(bool ok, const Args&... message) const {
    check_usage(ok, definition_.source, ": ", message...);
  }

  /// The member `key`, null if it is absent.
  static const Json& section(const Json& object, const char* key) {
    static const Json null;
    const auto found = object.find(key);
    return found == object.end() ? null : *found;
  }

  static bool flag(const Json& object, const char* key, bool absent = false) {
    const Json& value = section(object, key);
    return value.is_null() ? absent : value.get<bool>();
  }

  std::string type_of(const Json& object, const char* what) const {
    require(object.is_object() && section(object, "type").is_string(), what, " without a \"type\"");
    return object.at("type").get<std::string>();
  }

  int64_t token_id(const Json& value, const std::string& token) const {
    // Unsigned numbers count as integers; those above 2^63 become negative and are refused later.
    require(value.is_number_integer(), "the id of token '", token, "' is not a whole number");
    return value.get<int64_t>();
  }

  void read_model(const Json& model) {
    const std::string type = type_of(model, "a model");
    require(type == "BPE", "the model is ", type, "; only BPE is supported");
    for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const Json& value = section(model, affix);
      require(value.is_null() || (value.is_string() && value.get_ref<const std::string&>().empty()),
              "the model's ", affix, " is set; byte-level tokenizers have none");
    }
    const Json& dropout = section(model, "dropout");
    require(dropout.is_null() || dropout == 0, "the model has dropout, so its ids are random;",
            " set \"dropout\" to null");
    require(section(model, "vocab").is_object() && section(model, "merges").is_array(),
            "the model needs \"vocab\" (an object) and \"merges\" (an array)");
    for (const auto& [token, id] : model.at("vocab").items())
      definition_.vocabulary.emplace_back(token, token_id(id, token));
    for (const Json& merge : model.at("merges")) read_merge(merge);
    definition_.ignore_merges = flag(model, "ignore_merges");
  }

  void read_merge(const Json& merge) {
    const size_t rank = definition_.merges.size();
    if (merge.is_array()) {
      require(merge.size() == 2, "merge number ", rank, " has ", merge.size(), " parts, not 2");
      definition_.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      return;
    }
    const auto text = merge.get<std::string>();
    const size_t space = text.find(' ');
    require(space != std::string::npos && text.find(' ', space + 1) == std::string::npos,
            "merge number ", rank, " ('", text, "') is not two tokens with one space between them");
    definition_.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }

  void read_added_tokens(const Json& tokens) {
    require(tokens.is_null() || tokens.is_array(), "\"added_tokens\" is not an array");
    for (const Json& token : tokens) {
      require(token.is_object() && section(token, "content").is_string(),
              "an added token without \"content\"");
      AddedToken added;
      added.content = token.at("content").get<std::string>();
      const int64_t id = token_id(section(token, "id"), added.content);
      require(id >= 0 && id < INT32_MAX, "the added token '", added.content, "' has the id ", id,
              ", outside 0..2^31-2");
      require(!added.content.empty(), "the added token with the id ", id, " is empty");
      added.id = static_cast<int32_t>(id);
      added.special = flag(token, "special");
      added.single_word = flag(token, "single_word");
      added.lstrip = flag(token, "lstrip");
      added.rstrip = flag(token, "rstrip");
      added.normalized = flag(token, "normalized", !added.special);
      definition_.added_tokens.push_back(std::move(added));
    }
  }

  void read_normalizer(const Json& normalizer) {
    if (normalizer.is_null()) return;
    const std::string type = type_of(normalizer, "a normalizer");
    if (type == "Sequence") {
      for (const Json& step : section(normalizer, "normalizers")) {
        require(type_of(step, "a normalizer") != "Sequence", "a normalizer Sequence in a Sequence");
        read_normalizer(step);
      }
      return;
    }
    require(type == "NFC", "the normalizer ", type, " is not supported, only NFC");
    definition_.nfc = true;
  }

  void read_pre_tokenizer(const Json& step) {
    if (step.is_null()) return;
    const std::string type = type_of(step, "a pre_tokenizer");
    require(!byte_level_, "the pre_tokenizer ", type,
            " stands behind ByteLevel, which must be last");
    if (type == "Sequence") {
      for (const Json& inner : section(step, "pretokenizers")) {
        require(type_of(inner, "a pre_tokenizer") != "Sequence", "a Sequence in a Sequence");
        read_pre_tokenizer(inner);
      }
    } else if (type == "ByteLevel") {
      byte_level_ = true;
      definition_.add_prefix_space = flag(step, "add_prefix_space", true);
      definition_.split_like_gpt2 = flag(step, "use_regex", true);
    } else if (type == "Digits") {
      const bool each = flag(step, "individual_digits");
      definition_.splits.push_back({.pattern = each ? R"(\p{N})" : R"(\p{N}+)"});
    } else {
      require(type == "Split", "the pre_tokenizer ", type,
              " is not supported, only ByteLevel, Split, Digits and a Sequence of them");
      read_split(step);
    }
  }

  void read_split(const Json& step) {
    const Json& pattern = section(step, "pattern");
    const bool literal = section(pattern, "String").is_string();
    require(literal || section(pattern, "Regex").is_string(),
            "a Split whose \"pattern\" has neither \"Regex\" nor \"String\"");
    const Json& behavior = section(step, "behavior");
    const bool removed = behavior == "Removed";
    require(removed || behavior == "Isolated",
            "a Split whose \"behavior\" is neither Isolated nor Removed; others are not supported");
    const bool invert = flag(step, "invert");
    definition_.splits.push_back(
        {.pattern = pattern.at(literal ? "String" : "Regex").get<std::string>(),
         .literal = literal,
         .keep_matches = !removed || invert,
         .keep_gaps = !removed || !invert});
  }

  BpeDefinition definition_;
  bool byte_level_ = false;  // the ByteLevel step has been read
};

}  // namespace

std::unique_ptr<Tokenizer> parse_tokenizer_json(std::string_view json,
                                                const std::string& name_for_errors) {
  BpeDefinition definition;
  try {
    definition = TokenizerJsonReader(name_for_errors).read(Json::parse(json));
  } catch (const Json::exception& error) {
    throw UsageError(name_for_errors + ": not a complete tokenizer.json: " + error.what());
  }
  return std::make_unique<BpeTokenizer>(definition);
}

}  // namespace phalanx
