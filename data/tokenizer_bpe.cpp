// The way of a text through a byte-level BPE tokenizer.
#include "data/tokenizer_bpe.h"

#include <algorithm>

#include "data/bpe_vocabulary.h"
#include "data/bpe_word_cache.h"
#include "data/tokenizer_hash.h"
#include "data/unicode.h"
#include "kernels/base/error.h"

namespace phalanx {

struct BpeTokenizer::Scratch {
  RegexScratch regex;
  BpeWordCache cache;
  BpeWord word;
  std::vector<int32_t> symbols;
  std::string normalized;
  std::string prefixed;
};

/// A scratch for the length of one call. Kept in a pool and not per thread because its cache
/// belongs to one tokenizer.
class BpeTokenizer::BorrowedScratch {
 public:
  explicit BorrowedScratch(const BpeTokenizer& owner) : owner_(owner) {
    const std::lock_guard lock(owner_.mutex_);
    if (owner_.idle_.empty()) return;
    scratch_ = std::move(owner_.idle_.back());
    owner_.idle_.pop_back();
  }
  ~BorrowedScratch() {
    const std::lock_guard lock(owner_.mutex_);
    if (scratch_) owner_.idle_.push_back(std::move(scratch_));
  }
  BorrowedScratch(const BorrowedScratch&) = delete;
  BorrowedScratch& operator=(const BorrowedScratch&) = delete;

  Scratch& get() {
    if (!scratch_) scratch_ = std::make_unique<Scratch>();
    return *scratch_;
  }

 private:
  const BpeTokenizer& owner_;
  std::unique_ptr<Scratch> scratch_;
};

namespace {

std::vector<AddedToken> tokens_to_find(const BpeDefinition& definition, bool normalized) {
  std::vector<AddedToken> found;
  std::string buffer;
  for (const AddedToken& token : definition.added_tokens) {
    if (token.normalized != normalized) continue;
    found.push_back(token);
    if (normalized && definition.nfc) found.back().content = to_nfc(token.content, buffer);
  }
  return found;
}

std::vector<SplitPattern> compile(const BpeDefinition& definition) {
  std::vector<SplitPattern> patterns;
  for (const SplitStep& step : definition.splits) patterns.emplace_back(step, definition.source);
  if (definition.split_like_gpt2)
    patterns.emplace_back(SplitStep{.pattern = std::string(kGpt2Pattern)}, definition.source);
  return patterns;
}

std::string hash_of(const BpeDefinition& definition, const BpeVocabulary& vocabulary,
                    const BpeMerges& merges) {
  TokenizerHash hash;
  hash.add("byte-level BPE");
  for (const std::string_view text : vocabulary.texts()) hash.add(text);
  for (const BpeMerge& merge : merges.merges())
    for (const int32_t id : {merge.left, merge.right, merge.result}) hash.add(id);
  for (const AddedToken& token : definition.added_tokens) {
    hash.add(token.content);
    for (const int64_t value :
         {int64_t{token.id}, int64_t{token.single_word}, int64_t{token.lstrip},
          int64_t{token.rstrip}, int64_t{token.normalized}})
      hash.add(value);
  }
  for (const SplitStep& step : definition.splits) {
    hash.add(step.pattern);
    for (const bool flag : {step.literal, step.keep_matches, step.keep_gaps}) hash.add(flag);
  }
  for (const bool flag : {definition.nfc, definition.add_prefix_space, definition.split_like_gpt2,
                          definition.ignore_merges})
    hash.add(flag);
  return hash.hex();
}

}  // namespace

BpeTokenizer::BpeTokenizer(const BpeDefinition& definition)
    : BpeTokenizer(definition, BpeVocabulary(definition)) {}

BpeTokenizer::BpeTokenizer(const BpeDefinition& definition, const BpeVocabulary& vocabulary)
    : token_bytes_(vocabulary.token_bytes()),
      byte_ids_(vocabulary.byte_ids()),
      merges_(vocabulary.merges()),
      raw_tokens_(tokens_to_find(definition, false)),
      normalized_tokens_(tokens_to_find(definition, true)),
      nfc_(definition.nfc),
      splits_(compile(definition)),
      prefix_space_step_(definition.add_prefix_space ? definition.splits.size()
                                                     : splits_.size() + 1),
      end_of_document_(vocabulary.end_of_document()),
      content_hash_(hash_of(definition, vocabulary, merges_)) {
  if (definition.ignore_merges) word_ids_ = vocabulary.ids_by_bytes();
}

BpeTokenizer::~BpeTokenizer() = default;

void BpeTokenizer::encode(std::string_view text, std::vector<int32_t>& ids) const {
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
  BorrowedScratch scratch(*this);
  while (!text.empty()) {
    const size_t valid = valid_utf8_prefix(text);
    if (valid > 0) encode_valid(text.substr(0, valid), scratch.get(), ids);
    text.remove_prefix(valid);
    if (text.empty()) break;
    const int32_t byte_id = byte_ids_[static_cast<uint8_t>(text.front())];
    if (byte_id >= 0) {
      ids.push_back(byte_id);
    } else {
      encode_valid(kReplacement, scratch.get(), ids);
    }
    text.remove_prefix(1);
  }
}

void BpeTokenizer::encode_valid(std::string_view text, Scratch& scratch,
                                std::vector<int32_t>& ids) const {
  const auto emit_token = [&](int32_t id) { ids.push_back(id); };
  raw_tokens_.split(
      text,
      [&](std::string_view piece) {
        normalized_tokens_.split(
            nfc_ ? to_nfc(piece, scratch.normalized) : piece,
            [&](std::string_view rest) { encode_piece(rest, 0, scratch, ids); }, emit_token);
      },
      emit_token);
}

void BpeTokenizer::encode_piece(std::string_view text, size_t step, Scratch& scratch,
                                std::vector<int32_t>& ids) const {
  if (step == prefix_space_step_ && text.front() != ' ') {
    scratch.prefixed.assign(" ").append(text);
    text = scratch.prefixed;
  }
  if (step == splits_.size()) return encode_word(text, scratch, ids);
  splits_[step].split(text, scratch.regex,
                      [&](std::string_view piece) { encode_piece(piece, step + 1, scratch, ids); });
}

void BpeTokenizer::encode_word(std::string_view word, Scratch& scratch,
                               std::vector<int32_t>& ids) const {
  if (scratch.cache.find(word, ids)) return;
  const size_t before = ids.size();
  const auto whole = word_ids_.empty() ? word_ids_.end() : word_ids_.find(std::string(word));
  if (whole != word_ids_.end()) {
    ids.push_back(whole->second);
  } else {
    scratch.symbols.clear();
    for (const char byte : word) scratch.symbols.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
    merges_.apply(scratch.symbols, scratch.word, ids);
  }
  scratch.cache.insert(word, std::span(ids).subspan(before));
}

std::string BpeTokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) {
    check(id >= 0 && id < vocab_size(), "token id ", id, " is outside the vocabulary 0..",
          vocab_size() - 1, ": was it made by another tokenizer?");
    text.append(token_bytes_[static_cast<size_t>(id)]);
  }
  return text;
}

}  // namespace phalanx
