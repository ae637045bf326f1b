// Training: the merges of a text small enough to do by hand, determinism, and a vocabulary whose
// merges the Hugging Face trainer learned from the same text.
#include "data/tokenizer_train.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "data/tokenizer_json.h"
#include "kernels/base/error.h"
#include "tests/data/tokenizer_helpers.h"

namespace phalanx {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

std::string train(std::vector<std::string> chunks, const TrainTokenizerOptions& options) {
  size_t next = 0;
  return train_bpe_tokenizer(
      [&](std::string& chunk) {
        if (next == chunks.size()) return false;
        chunk = chunks[next++];
        return true;
      },
      options);
}

std::vector<std::string> lines_of_golden_texts() {
  std::vector<std::string> chunks;
  for (const auto& [name, text] : golden_texts()) chunks.push_back(text);
  return chunks;
}

TEST(TokenizerTrain, MergesTheMostFrequentPairFirst) {
  // Words: "ab" once, " ab" twice, " abc" three times. Pairs: a b 6, " " a 5, b c 3.
  const std::string json = train({"ab ab ab abc abc abc"}, {.vocab_size = 260});
  EXPECT_THAT(nlohmann::json::parse(json)["model"]["merges"],
              ElementsAre("a b", "\u0120 ab", "\u0120ab c"));
}

TEST(TokenizerTrain, WritesAWorkingTokenizer) {
  const std::string json = train(lines_of_golden_texts(), {.vocab_size = 400});
  const auto tokenizer = parse_tokenizer_json(json, "trained");
  EXPECT_EQ(tokenizer->vocab_size(), 400);
  EXPECT_EQ(tokenizer->end_of_document(), 399);
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{399}), "<|endoftext|>");
  for (const auto& [name, text] : golden_texts())
    EXPECT_EQ(tokenizer->decode(encoded(*tokenizer, text)), text) << name;
}

TEST(TokenizerTrain, EqualsTheReferenceTrainer) {
  const auto golden = nlohmann::json::parse(read_test_file(golden_path("tokenizer_trained.json")));
  const auto texts = golden_texts();
  std::vector<std::string> chunks;
  for (const std::string name : golden.at("texts")) chunks.push_back(texts.at(name));
  const auto vocab_size = static_cast<int64_t>(golden.at("merges").size()) + 257;
  const auto trained = nlohmann::json::parse(train(chunks, {.vocab_size = vocab_size}));
  EXPECT_EQ(trained["model"]["merges"], golden["merges"]);
}

TEST(TokenizerTrain, DependsNeitherOnThreadsNorOnOrder) {
  std::vector<std::string> chunks = lines_of_golden_texts();
  const std::string one = train(chunks, {.vocab_size = 350, .num_threads = 1});
  std::ranges::reverse(chunks);
  EXPECT_EQ(train(chunks, {.vocab_size = 350, .num_threads = 4}), one);
}

TEST(TokenizerTrain, OverlappingPairs) {
  // a^7: aa aa aa a, then aaaa aa a; equal letters overlap, which naive counts get wrong.
  const auto merges =
      nlohmann::json::parse(train({"aaaaaaa"}, {.vocab_size = 260}))["model"]["merges"];
  EXPECT_THAT(merges, ElementsAre("a a", "aa aa", "aa a"));
}

TEST(TokenizerTrain, VeryLongWordsDoNotStallIt) {
  std::string word;
  uint32_t state = 1;
  for (int i = 0; i < 2'000'000; ++i) {
    state = state * 1664525U + 1013904223U;
    word.push_back(static_cast<char>('a' + (state >> 24) % 23));
  }
  EXPECT_NO_THROW(train({word}, {.vocab_size = 500}));
}

TEST(TokenizerTrain, ImpossibleSizesAreRefused) {
  EXPECT_THAT([] { train({"text"}, {.vocab_size = 256}); },
              ThrowsMessage<UsageError>(HasSubstr("256")));
  EXPECT_THAT([] { train({"ab"}, {.vocab_size = 300}); },
              ThrowsMessage<UsageError>(HasSubstr("258")));
  EXPECT_THAT([] { train({}, {.vocab_size = 300}); }, ThrowsMessage<UsageError>(HasSubstr("257")));
  EXPECT_NO_THROW(train({}, {.vocab_size = 257}));
}

TEST(TokenizerTrain, ReadErrorsReachTheCaller) {
  const TrainTokenizerOptions options{.vocab_size = 300, .num_threads = 2};
  EXPECT_THAT([&] { train_bpe_tokenizer([](std::string&) -> bool { fail("disk"); }, options); },
              ThrowsMessage<Error>(HasSubstr("disk")));
}

}  // namespace
}  // namespace phalanx
