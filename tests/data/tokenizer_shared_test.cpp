// Real tokenizers on real corpora: ids equal those of the Hugging Face library.
#include <gtest/gtest.h>

#include "data/unicode.h"
#include "tests/data/tokenizer_helpers.h"

namespace phalanx {
namespace {

std::string shared_path(const std::string& name) {
  return std::string(PHALANX_SHARED_DATA) + "/" + name;
}

std::unique_ptr<Tokenizer> shared_tokenizer(const std::string& name) {
  if (name != "gpt2") return hugging_face_tokenizer(shared_path("tokenizers/" + name));
  return make_tokenizer({.type = TokenizerType::gpt2_bpe,
                         .model = "",
                         .vocab_file = shared_path("tokenizers/gpt2_encoder.json"),
                         .merge_file = shared_path("tokenizers/gpt2_vocab.bpe")});
}

TEST(SharedTokenizer, GivesTheReferenceIds) {
  const auto golden =
      nlohmann::json::parse(read_test_file(golden_path("tokenizer_shared_ids.json")));
  auto texts = golden_texts();
  for (const char* corpus : {"gutenberg/small.txt", "text/tinyshakespeare.txt"})
    texts[corpus] = read_test_file(shared_path(corpus));
  ASSERT_EQ(golden.size(), 3U);
  for (const auto& [name, references] : golden.items()) {
    const auto tokenizer = shared_tokenizer(name);
    for (const auto& [text_name, text] : texts) {
      const std::vector<int32_t> ids = encoded(*tokenizer, text);
      EXPECT_EQ(summary_of_ids(ids), references.at(text_name)) << name << ", " << text_name;
      if (!name.starts_with("allenai_gpt-neox")) {  // that one normalizes
        EXPECT_EQ(tokenizer->decode(ids), text) << name << ", " << text_name;
      }
    }
  }
}

TEST(SharedTokenizer, VocabularySizesAndEndsOfDocuments) {
  const auto dolma2 = shared_tokenizer("allenai_dolma2.json");
  EXPECT_EQ(dolma2->vocab_size(), 100278);
  EXPECT_EQ(dolma2->end_of_document(), 100257);
  const auto neox = shared_tokenizer("allenai_gpt-neox-olmo-dolma-v1_5.json");
  EXPECT_EQ(neox->vocab_size(), 50280);
  EXPECT_EQ(neox->end_of_document(), 50279);
  const auto gpt2 = shared_tokenizer("gpt2");
  EXPECT_EQ(gpt2->vocab_size(), 50257);
  EXPECT_EQ(gpt2->end_of_document(), 50256);
}

// The counts that nanoGPT publishes for its 90/10 split by characters (the text is ASCII).
TEST(SharedTokenizer, ShakespeareCounts) {
  const std::string text = read_test_file(shared_path("text/tinyshakespeare.txt"));
  const auto gpt2 = shared_tokenizer("gpt2");
  const size_t cut = text.size() * 9 / 10;
  EXPECT_EQ(encoded(*gpt2, std::string_view(text).substr(0, cut)).size(), 301966U);
  EXPECT_EQ(encoded(*gpt2, std::string_view(text).substr(cut)).size(), 36059U);
}

}  // namespace
}  // namespace phalanx
