// Training in three steps: count words in parallel, learn merges, write tokenizer.json.
#include "data/tokenizer_train.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "data/bpe_trainer.h"
#include "data/byte_level.h"
#include "data/split_pattern.h"
#include "data/unicode.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

using NextChunk = std::function<bool(std::string& chunk)>;

void count_words(std::string_view text, const SplitPattern& pattern, RegexScratch& scratch,
                 WordCounts& counts) {
  std::string word;  // reused, so that only new words allocate
  while (!text.empty()) {
    const size_t valid = valid_utf8_prefix(text);
    pattern.split(text.substr(0, valid), scratch, [&](std::string_view piece) {
      word.assign(piece);
      ++counts[word];
    });
    // Invalid bytes are encoded one by one, so they form no pairs.
    text.remove_prefix(std::min(valid + 1, text.size()));
  }
}

/// Several threads take chunks in turn; the first error of any of them is thrown here.
WordCounts count_all_words(const NextChunk& next_chunk, int num_threads) {
  const SplitPattern pattern({.pattern = std::string(kCl100kPattern)}, "training");
  WordCounts total;
  std::exception_ptr error;
  std::mutex reading;
  std::mutex merging;
  const auto take = [&](std::string& chunk) {
    const std::lock_guard lock(reading);
    return !error && next_chunk(chunk);
  };
  const auto work = [&] {
    WordCounts counts;
    RegexScratch scratch;
    for (std::string chunk; take(chunk);) count_words(chunk, pattern, scratch, counts);
    const std::lock_guard lock(merging);
    for (const auto& [word, count] : counts) total[word] += count;
  };
  const auto guarded_work = [&] {
    try {
      work();
    } catch (...) {
      const std::lock_guard lock(reading);
      error = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < num_threads; ++i) threads.emplace_back(guarded_work);
  }
  if (error) std::rethrow_exception(error);
  return total;
}

std::string to_tokenizer_json(const BpeTrainer& trainer, const std::string& end_of_document) {
  using Json = nlohmann::json;
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", false}};
  const Json split = {{"type", "Split"},
                      {"pattern", {{"Regex", kCl100kPattern}}},
                      {"behavior", "Isolated"},
                      {"invert", false}};
  std::vector<std::string> texts;
  for (const std::string& token : trainer.tokens()) texts.push_back(to_byte_level(token));
  auto vocabulary = Json::object();
  for (size_t id = 0; id < texts.size(); ++id) vocabulary[texts[id]] = id;
  auto merges = Json::array();
  for (const BpeMerge& merge : trainer.merges())
    merges.push_back(texts[static_cast<size_t>(merge.left)] + " " +
                     texts[static_cast<size_t>(merge.right)]);
  const Json document = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", Json::array({{{"id", texts.size()},
                                     {"content", end_of_document},
                                     {"single_word", false},
                                     {"lstrip", false},
                                     {"rstrip", false},
                                     {"normalized", false},
                                     {"special", true}}})},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", Json::array({split, byte_level})}}},
      {"post_processor", nullptr},
      {"decoder", byte_level},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", std::move(vocabulary)},
        {"merges", std::move(merges)}}}};
  return document.dump(1) + "\n";
}

}  // namespace

std::string train_bpe_tokenizer(const NextChunk& next_chunk, const TrainTokenizerOptions& options) {
  constexpr int64_t kSmallest = 257;
  check_usage(options.vocab_size >= kSmallest, "a vocabulary of ", options.vocab_size,
              " tokens cannot hold the 256 bytes and the end-of-document token; ask for ",
              kSmallest, " or more");
  const std::string& end = options.end_of_document;
  check_usage(!end.empty() && valid_utf8_prefix(end) == end.size(),
              "the end-of-document token must be non-empty UTF-8, not '", end, "'");
  BpeTrainer trainer(count_all_words(next_chunk, std::max(options.num_threads, 1)));
  trainer.train(options.vocab_size - 1);
  const auto learned = static_cast<int64_t>(trainer.tokens().size()) + 1;
  check_usage(learned == options.vocab_size, "the text has pairs for ", learned,
              " tokens only, not for ", options.vocab_size, "; give more text or ask for ", learned,
              " or fewer");
  check_usage(std::ranges::find(trainer.tokens(), end) == trainer.tokens().end(),
              "the end-of-document token '", end,
              "' is also a token of ordinary text; choose a name",
              " that the text does not hold, like <|endoftext|>");
  return to_tokenizer_json(trainer, options.end_of_document);
}

}  // namespace phalanx
