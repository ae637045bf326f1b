// Checks that make a vocabulary usable, each with an error that names file and token.
#include "data/bpe_vocabulary.h"

#include <algorithm>

#include "data/byte_level.h"
#include "data/unicode.h"
#include "kernels/base/error.h"

namespace phalanx {

BpeVocabulary::BpeVocabulary(const BpeDefinition& definition) : definition_(definition) {
  collect();
}

void BpeVocabulary::collect() {
  const std::string& source = definition_.source;
  std::vector<std::pair<int64_t, std::string_view>> entries;
  for (const auto& [token, id] : definition_.vocabulary) entries.emplace_back(id, token);
  for (const AddedToken& token : definition_.added_tokens)
    entries.emplace_back(token.id, token.content);
  std::ranges::sort(entries);
  // The vocabulary usually lists the added tokens too.
  entries.erase(std::unique(entries.begin(), entries.end()), entries.end());
  check_usage(!entries.empty(), source, ": the vocabulary is empty");
  for (const auto& [id, token] : entries) {
    const auto expected = static_cast<int64_t>(texts_.size());
    check_usage(id >= 0 && id < INT32_MAX, source, ": token '", token, "' has the id ", id,
                ", outside 0..2^31-2");
    check_usage(id >= expected, source, ": the id ", id, " is given to both '",
                id < expected ? texts_.back() : "", "' and '", token, "'; ids must be unique");
    check_usage(id <= expected, source, ": no token has the id ", expected,
                ", but larger ids are in use; every id below the vocabulary size needs a token");
    const auto [other, is_new] = ids_.emplace(token, static_cast<int32_t>(id));
    check_usage(is_new, source, ": the token '", token, "' has two ids, ", other->second, " and ",
                id);
    texts_.push_back(token);
  }
}

std::vector<std::string> BpeVocabulary::token_bytes() const {
  std::vector<std::string> bytes;
  bytes.reserve(texts_.size());
  for (const std::string_view text : texts_)
    bytes.push_back(from_byte_level(text).value_or(std::string(text)));
  // Added tokens are matched in the text as written, so that is what they decode to.
  for (const AddedToken& token : definition_.added_tokens)
    bytes[static_cast<size_t>(token.id)] = token.content;
  return bytes;
}

std::array<int32_t, 256> BpeVocabulary::byte_ids() const {
  std::array<int32_t, 256> ids{};
  for (size_t byte = 0; byte < 256; ++byte) {
    const std::string text = to_byte_level(std::string(1, static_cast<char>(byte)));
    const auto found = ids_.find(text);
    const bool in_utf8 = byte != 0xC0 && byte != 0xC1 && byte < 0xF5;
    check_usage(found != ids_.end() || !in_utf8, definition_.source, ": no token for the byte ",
                byte, " ('", text,
                "'); only byte-level vocabularies, which have one for every byte",
                " of UTF-8, are supported");
    ids[byte] = found != ids_.end() ? found->second : -1;
  }
  return ids;
}

int32_t BpeVocabulary::id_in_merge(const std::string& token, size_t rank) const {
  const auto found = ids_.find(token);
  check_usage(found != ids_.end(), definition_.source, ": merge number ", rank, " ('",
              definition_.merges[rank].first, "' + '", definition_.merges[rank].second,
              "') needs the token '", token, "', which is not in the vocabulary; do vocabulary and",
              " merges belong together?");
  return found->second;
}

std::vector<BpeMerge> BpeVocabulary::merges() const {
  std::vector<BpeMerge> merges;
  merges.reserve(definition_.merges.size());
  for (size_t rank = 0; rank < definition_.merges.size(); ++rank) {
    const auto& [left, right] = definition_.merges[rank];
    merges.push_back(
        {id_in_merge(left, rank), id_in_merge(right, rank), id_in_merge(left + right, rank)});
  }
  return merges;
}

std::unordered_map<std::string, int32_t> BpeVocabulary::ids_by_bytes() const {
  std::unordered_map<std::string, int32_t> ids;
  for (size_t id = 0; id < texts_.size(); ++id)
    if (auto bytes = from_byte_level(texts_[id]))
      ids.emplace(std::move(*bytes), static_cast<int32_t>(id));
  return ids;
}

int32_t BpeVocabulary::end_of_document() const {
  for (const char* name : {"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"})
    if (const auto found = ids_.find(name); found != ids_.end()) return found->second;
  const auto& added = definition_.added_tokens;
  const bool only_one = std::ranges::count_if(added, &AddedToken::special) == 1;
  return only_one ? std::ranges::find_if(added, &AddedToken::special)->id : -1;
}

}  // namespace phalanx
