// Every broken tokenizer file is refused with a UsageError that names the file and the value.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "data/tokenizer_gpt2.h"
#include "data/tokenizer_json.h"
#include "kernels/base/error.h"
#include "tests/data/tokenizer_helpers.h"

namespace phalanx {
namespace {

using Json = nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

Json valid() {
  return Json::parse(read_test_file(golden_path("tokenizer_cl100k.json")));
}

/// The change makes a valid document one that is refused with `words` in the message.
void expect_refused(const std::function<void(Json&)>& change, const std::string& words) {
  Json json = valid();
  change(json);
  const std::string text = json.dump();
  EXPECT_THAT([&] { parse_tokenizer_json(text, "broken.json"); },
              ThrowsMessage<UsageError>(AllOf(HasSubstr("broken.json"), HasSubstr(words))));
}

TEST(TokenizerErrors, TheUnchangedFileIsFine) {
  EXPECT_NO_THROW(parse_tokenizer_json(valid().dump(), "fine.json"));
}

TEST(TokenizerErrors, HoleInTheIds) {
  expect_refused([](Json& json) { json["added_tokens"][0]["id"] = 5000; },
                 "no token has the id " + std::to_string(valid()["model"]["vocab"].size()));
  expect_refused([](Json& json) { json["model"]["vocab"].erase("!"); }, "no token has the id 0");
  expect_refused([](Json& json) { json["model"]["vocab"]["far"] = 2147483646; }, "no token has");
}

TEST(TokenizerErrors, DuplicateAndImpossibleIds) {
  expect_refused([](Json& json) { json["model"]["vocab"]["again"] = 3; },
                 "the id 3 is given to both");
  expect_refused([](Json& json) { json["added_tokens"][0]["id"] = 7; },
                 "the id 7 is given to both");
  expect_refused(
      [](Json& json) {
        json["added_tokens"].push_back(json["added_tokens"][0]);
        json["added_tokens"][1]["id"] = json["added_tokens"][0]["id"].get<int>() + 1;
      },
      "the token '<|endoftext|>' has two ids");
  expect_refused([](Json& json) { json["model"]["vocab"]["low"] = -1; }, "'low' has the id -1");
  expect_refused([](Json& json) { json["model"]["vocab"]["high"] = 9223372036854775807; },
                 "outside 0..2^31-2");
  expect_refused([](Json& json) { json["model"]["vocab"]["half"] = 1.5; }, "id of token 'half'");
  expect_refused([](Json& json) { json["added_tokens"][0]["id"] = 1LL << 40; }, "1099511627776");
}

TEST(TokenizerErrors, BadMerges) {
  expect_refused([](Json& json) { json["model"]["merges"].push_back("Q Zebra"); }, "'Zebra'");
  expect_refused([](Json& json) { json["model"]["merges"].push_back("Q z"); },
                 "needs the token 'Qz'");
  expect_refused([](Json& json) { json["model"]["merges"][0] = "a b c"; }, "merge number 0");
  expect_refused([](Json& json) { json["model"]["merges"][0] = Json::array({"a"}); },
                 "has 1 parts");
  expect_refused([](Json& json) { json["model"]["merges"][0] = 5; }, "type must be string");
}

TEST(TokenizerErrors, BadPatterns) {
  const auto regex = [](const char* pattern) {
    return [pattern](Json& json) {
      json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern;
    };
  };
  expect_refused(regex("(unclosed"), "'(unclosed' does not compile");
  expect_refused(regex("\\C"), "does not compile");
  expect_refused(regex("[z-a]"), "does not compile");
}

TEST(TokenizerErrors, ExponentialPatternsStop) {
  Json json = valid();
  json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a+)+$";
  const auto tokenizer = parse_tokenizer_json(json.dump(), "slow.json");
  EXPECT_THAT([&] { encoded(*tokenizer, std::string(60, 'a') + "b"); },
              ThrowsMessage<Error>(HasSubstr("(a+)+$")));
}

TEST(TokenizerErrors, WhatIsNotSupportedIsNamed) {
  expect_refused([](Json& json) { json["model"]["type"] = "WordPiece"; }, "WordPiece");
  expect_refused([](Json& json) { json["normalizer"] = {{"type", "Lowercase"}}; }, "Lowercase");
  expect_refused([](Json& json) { json["pre_tokenizer"] = {{"type", "Metaspace"}}; }, "Metaspace");
  expect_refused([](Json& json) { json["pre_tokenizer"] = nullptr; }, "ByteLevel");
  expect_refused([](Json& json) { json["model"]["dropout"] = 0.1; }, "dropout");
  expect_refused([](Json& json) { json["model"]["end_of_word_suffix"] = "</w>"; },
                 "end_of_word_suffix");
  expect_refused(
      [](Json& json) { json["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Contiguous"; },
      "Isolated");
  expect_refused(
      [](Json& json) {
        std::swap(json["pre_tokenizer"]["pretokenizers"][0],
                  json["pre_tokenizer"]["pretokenizers"][1]);
      },
      "must be last");
}

TEST(TokenizerErrors, ForeignAndTruncatedFiles) {
  const std::string text = valid().dump();
  for (size_t size = 0; size < text.size(); size += 97)
    EXPECT_THAT([&] { parse_tokenizer_json(text.substr(0, size), "cut.json"); },
                ThrowsMessage<UsageError>(HasSubstr("cut.json")))
        << size;
  for (const char* foreign : {"[]", "{}", "3", "null", "\"x\"", "{\"model\":[]}", "\x89PNG\r\n",
                              "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}"})
    EXPECT_THAT([&] { parse_tokenizer_json(foreign, "foreign.json"); },
                ThrowsMessage<UsageError>(HasSubstr("foreign.json")))
        << foreign;
  const std::string deep(1'000'000, '[');
  EXPECT_THROW(parse_tokenizer_json(deep, "deep.json"), UsageError);
  EXPECT_THROW(parse_tokenizer_json(deep + std::string(deep.size(), ']'), "deep.json"), UsageError);
}

TEST(TokenizerErrors, WrongTypesInEveryPlace) {
  const Json json = valid();
  const Json flat = json.flatten();
  for (const auto& [pointer, value] : flat.items()) {
    if (pointer.starts_with("/model/merges/") || pointer.starts_with("/model/vocab/")) continue;
    for (const Json& other : {Json(), Json(-7), Json("x"), Json::array(), Json::object()}) {
      Json changed = json;
      changed[Json::json_pointer(pointer)] = other;
      try {
        parse_tokenizer_json(changed.dump(), "odd.json");
      } catch (const UsageError&) {  // refused or understood; anything else fails the test
      }
    }
  }
}

TEST(TokenizerErrors, MissingFilesAndOptions) {
  const auto missing = std::filesystem::path(testing::TempDir()) / "no-such-tokenizer.json";
  EXPECT_THAT([&] { hugging_face_tokenizer(missing.string()); },
              ThrowsMessage<UsageError>(
                  AllOf(HasSubstr("--tokenizer-model"), HasSubstr(missing.string()))));
  EXPECT_THAT([&] { hugging_face_tokenizer(testing::TempDir()); },
              ThrowsMessage<UsageError>(HasSubstr("--tokenizer-model")));
  EXPECT_THAT([] { make_tokenizer({.type = TokenizerType::hugging_face}); },
              ThrowsMessage<UsageError>(HasSubstr("--tokenizer-model FILE")));
  EXPECT_THAT([] { make_tokenizer({.type = TokenizerType::gpt2_bpe}); },
              ThrowsMessage<UsageError>(HasSubstr("--vocab-file FILE")));
}

TEST(TokenizerErrors, Gpt2Files) {
  const std::string vocabulary = valid()["model"]["vocab"].dump();
  EXPECT_EQ(parse_gpt2_tokenizer(vocabulary, "v.json", "#version: 0.2\n\n", "m.txt")
                ->decode(std::vector<int32_t>{0}),
            "!");
  const auto refused = [](const std::string& vocab, const std::string& merges,
                          const std::string& words) {
    EXPECT_THAT([&] { parse_gpt2_tokenizer(vocab, "v.json", merges, "m.txt"); },
                ThrowsMessage<UsageError>(HasSubstr(words)));
  };
  refused("[1]", "", "v.json");
  refused("{\"a\":\"b\"}", "", "'a'");
  refused(vocabulary.substr(0, 100), "", "v.json");
  refused(vocabulary, "#version: 0.2\nonly\n", "m.txt: line 2 ('only')");
  refused(vocabulary, "a b c\n", "m.txt: line 1");
  refused(vocabulary, "q zebra\n", "zebra");
}

}  // namespace
}  // namespace phalanx
