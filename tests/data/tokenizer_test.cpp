// Tokenizers: ids equal to the Hugging Face library's, round trips of any bytes, texts that would
// make a careless implementation quadratic, and several threads on one object.
#include "data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>
#include <random>
#include <thread>

#include "data/split_pattern.h"
#include "data/tokenizer_json.h"
#include "data/unicode.h"
#include "kernels/base/error.h"
#include "tests/data/tokenizer_helpers.h"

namespace phalanx {
namespace {

using testing::ElementsAre;

std::string random_bytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

TEST(Tokenizer, BytesAreTheirOwnIds) {
  const auto tokenizer = make_tokenizer({.type = TokenizerType::bytes});
  EXPECT_THAT(encoded(*tokenizer, std::string_view("a\0\xFF", 3)), ElementsAre(97, 0, 255));
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->end_of_document(), 256);
  const std::string bytes = random_bytes(5000, 1);
  EXPECT_EQ(tokenizer->decode(encoded(*tokenizer, bytes)), bytes);
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{256, 65, 256}), "A");
  EXPECT_THROW(tokenizer->decode(std::vector<int32_t>{257}), Error);
  EXPECT_THROW(tokenizer->decode(std::vector<int32_t>{-1}), Error);
}

class GoldenTokenizer : public testing::TestWithParam<std::string> {};

TEST_P(GoldenTokenizer, GivesTheReferenceIds) {
  const auto golden = nlohmann::json::parse(read_test_file(golden_path("tokenizer_ids.json")));
  const auto tokenizer = hugging_face_tokenizer(golden_path(GetParam()));
  const auto texts = golden_texts();
  ASSERT_GE(texts.size(), 20U);
  for (const auto& [name, text] : texts)
    EXPECT_EQ(summary_of_ids(encoded(*tokenizer, text)), golden.at("ids").at(GetParam()).at(name))
        << name;
}

INSTANTIATE_TEST_SUITE_P(Tokenizer, GoldenTokenizer,
                         testing::Values("tokenizer_gpt2.json", "tokenizer_cl100k.json",
                                         "tokenizer_steps.json"),
                         [](const auto& info) {
                           return info.param.substr(10, info.param.find('.') - 10);
                         });

TEST(Tokenizer, AnyBytesSurviveTheRoundTrip) {
  const auto tokenizer = hugging_face_tokenizer(golden_path("tokenizer_cl100k.json"));
  for (const auto& [name, text] : golden_texts())
    EXPECT_EQ(tokenizer->decode(encoded(*tokenizer, text)), text) << name;
  for (uint32_t seed = 0; seed < 200; ++seed) {
    const std::string bytes = random_bytes(seed, seed);
    ASSERT_EQ(tokenizer->decode(encoded(*tokenizer, bytes)), bytes) << "seed " << seed;
  }
}

TEST(Tokenizer, NormalizingTokenizerReturnsTheNormalForm) {
  auto json = nlohmann::json::parse(read_test_file(golden_path("tokenizer_gpt2.json")));
  // Some of its added tokens swallow spaces; their ids are the golden test's business.
  json["added_tokens"] = nlohmann::json::array();
  const auto tokenizer = parse_tokenizer_json(json.dump(), "no added tokens");
  EXPECT_EQ(tokenizer->decode(encoded(*tokenizer,
                                      "e\xCC\x81\xFF"
                                      "e\xCC\x81")),
            "\xC3\xA9\xFF\xC3\xA9");
  std::string buffer;
  for (const auto& [name, text] : golden_texts()) {
    if (valid_utf8_prefix(text) != text.size()) continue;
    EXPECT_EQ(tokenizer->decode(encoded(*tokenizer, text)), to_nfc(text, buffer)) << name;
  }
}

TEST(Tokenizer, UnknownIdsDoNotDecode) {
  const auto tokenizer = hugging_face_tokenizer(golden_path("tokenizer_cl100k.json"));
  const auto end = static_cast<int32_t>(tokenizer->vocab_size());
  EXPECT_EQ(tokenizer->end_of_document(), end - 1);
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{end - 1}), "<|endoftext|>");
  for (const int32_t id : {end, -1, INT32_MAX})
    EXPECT_THROW(tokenizer->decode(std::vector<int32_t>{id}), Error) << id;
}

TEST(Tokenizer, HashTellsTokenizersApart) {
  const std::string path = golden_path("tokenizer_cl100k.json");
  const std::string hash = hugging_face_tokenizer(path)->content_hash();
  EXPECT_EQ(hash.size(), 32U);
  auto json = nlohmann::json::parse(read_test_file(path));
  EXPECT_EQ(parse_tokenizer_json(json.dump(3), "same, laid out otherwise")->content_hash(), hash);
  json["model"]["ignore_merges"] = false;
  EXPECT_NE(parse_tokenizer_json(json.dump(), "other")->content_hash(), hash);
  json["model"]["ignore_merges"] = true;
  json["model"]["merges"].erase(json["model"]["merges"].size() - 1);
  EXPECT_NE(parse_tokenizer_json(json.dump(), "other")->content_hash(), hash);
}

/// Processor seconds to encode `text`, not wall time: other programs share the machine.
double seconds_to_encode(const Tokenizer& tokenizer, const std::string& text) {
  const std::clock_t begin = std::clock();
  const std::vector<int32_t> ids = encoded(tokenizer, text);
  const std::clock_t end = std::clock();
  EXPECT_EQ(tokenizer.decode(ids), text);
  return static_cast<double>(end - begin) / CLOCKS_PER_SEC;
}

// 32 times the text takes 32 times as long if work is linear, 32 log(640k)/log(20k) = 43 times if
// it is n log n, and 1024 times if it is quadratic. The bound is the geometric mean of the last
// two.
TEST(Tokenizer, LongRunsTakeNoQuadraticTime) {
  const auto tokenizer = hugging_face_tokenizer(golden_path("tokenizer_cl100k.json"));
  const std::vector<std::string> units = {" ", "a", "the", "-", "\xFF", " \n", "\xCC\x81\xCC\xA3"};
  for (const std::string& unit : units) {
    const auto seconds = [&](size_t bytes) {
      std::string text;
      while (text.size() < bytes) text += unit;
      return seconds_to_encode(*tokenizer, text + "x");
    };
    double small = 1e9;
    for (int i = 0; i < 5; ++i) small = std::min(small, seconds(20'000));
    EXPECT_LT(seconds(640'000), 210 * small) << "unit '" << unit << "'";
  }
}

// PCRE2's default limit of ten million steps stops here.
TEST(Tokenizer, TenMegabytesOfSpacesSplit) {
  const std::string text = std::string(11'000'000, ' ') + "x";
  RegexScratch scratch;
  for (const std::string_view pattern : {kGpt2Pattern, kCl100kPattern}) {
    std::vector<size_t> sizes;
    SplitPattern({.pattern = std::string(pattern)}, "test")
        .split(text, scratch, [&](std::string_view piece) { sizes.push_back(piece.size()); });
    EXPECT_THAT(sizes, ElementsAre(10'999'999, 2));
  }
}

TEST(Tokenizer, LongRunsOfMarksNormalizeInTime) {
  std::string text = "e";
  for (int i = 0; i < 500'000; ++i) text += "\xCC\x81\xCC\xA3";  // acute above, dot below
  std::string buffer;
  const std::string_view nfc = to_nfc(text, buffer);
  // The dots come first, one of them joins the e; the acutes follow.
  EXPECT_EQ(nfc.substr(0, 5), "\xE1\xBA\xB9\xCC\xA3");
  EXPECT_EQ(nfc.substr(nfc.size() - 2), "\xCC\x81");
  EXPECT_EQ(nfc.size(), text.size());
}

TEST(Tokenizer, ThreadsShareOneObject) {
  const auto tokenizer = hugging_face_tokenizer(golden_path("tokenizer_gpt2.json"));
  const auto texts = golden_texts();
  std::map<std::string, std::vector<int32_t>> expected;
  for (const auto& [name, text] : texts) expected[name] = encoded(*tokenizer, text);
  std::vector<int> wrong(4, 0);
  {
    std::vector<std::jthread> threads;
    for (int& count : wrong)
      threads.emplace_back([&] {
        for (int round = 0; round < 20; ++round)
          for (const auto& [name, text] : texts)
            count += encoded(*tokenizer, text) != expected[name];
      });
  }
  EXPECT_THAT(wrong, testing::Each(0));
}

}  // namespace
}  // namespace phalanx
