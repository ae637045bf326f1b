// Preparing datasets: documents, keys, order, memory, errors that leave nothing behind.
#include "data/prepare.h"

#include <gmock/gmock.h>

#include "data/numpy_random.h"
#include "data/ordered_pipeline.h"
#include "tests/data/data_helpers.h"

namespace phalanx {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

/// Documents of a dataset as text; each of them one sequence or none.
std::vector<std::string> documents_of(const std::string& prefix) {
  const IndexedDataset data(prefix);
  std::vector<std::string> documents;
  for (int64_t d = 0; d < data.index().num_documents(); ++d) {
    std::vector<int32_t> ids;
    for (int64_t s = data.index().document_begin(d); s < data.index().document_begin(d + 1); ++s) {
      ids.resize(static_cast<size_t>(data.index().length(s)));
      data.read(s, 0, ids);
    }
    documents.push_back(ByteFake().decode(ids));
  }
  return documents;
}

PrepareConfig config_for(const TemporaryFolder& folder, const std::vector<std::string>& names) {
  PrepareConfig config{.output_prefix = folder / "out", .workers = 3};
  for (const std::string& name : names) config.input.push_back(folder / name);
  return config;
}

TEST(Prepare, OneDocumentPerTextFile) {
  const TemporaryFolder folder;
  spit(folder / "a.txt", "first\n\nfile\n");
  spit(folder / "empty.txt", "");
  spit(folder / "b.txt", "second");
  PrepareConfig config = config_for(folder, {"a.txt", "empty.txt", "b.txt"});
  config.append_eod = true;
  const PrepareResult result = prepare(config, ByteFake(), {});
  ASSERT_EQ(result.datasets.size(), 1U);
  EXPECT_EQ(result.datasets[0].prefix, folder / "out_text_document");
  EXPECT_THAT(documents_of(folder / "out_text_document"),
              ElementsAre("first\n\nfile\n\f", "second\f"));
  EXPECT_THAT(folder.files(),
              UnorderedElementsAre("a.txt", "empty.txt", "b.txt", "out_text_document.bin",
                                   "out_text_document.idx", "out_text_document.json"));
}

TEST(Prepare, SplitsDocumentsAtBlankLinesOrFormFeeds) {
  const TemporaryFolder folder;
  spit(folder / "a.txt", "\n \none\ntwo\r\n\r\n\n\nthree\n\n");
  PrepareConfig config = config_for(folder, {"a.txt"});
  config.document_boundary = DocumentBoundary::blank_line;
  prepare(config, ByteFake(), {});
  EXPECT_THAT(documents_of(folder / "out_text_document"), ElementsAre("one\ntwo\r\n", "three\n"));
  spit(folder / "a.txt", "\fone\n\ntwo\f\fthree");
  config.document_boundary = DocumentBoundary::form_feed;
  prepare(config, ByteFake(), {});
  EXPECT_THAT(documents_of(folder / "out_text_document"), ElementsAre("one\n\ntwo", "three"));
}

TEST(Prepare, ReadsJsonLinesOneDatasetPerKey) {
  const TemporaryFolder folder;
  spit(folder / "a.jsonl",
       "{\"text\": \"caf\\u00e9\", \"title\": \"A\"}\n\n"
       "{\"title\": \"\", \"text\": \"two\\nlines\", \"more\": [1]}\n");
  spit(folder / "b.jsonl", "{\"text\": \"last\", \"title\": \"C\"}");
  PrepareConfig config = config_for(folder, {"a.jsonl", "b.jsonl"});
  config.json_keys = {"text", "title"};
  config.append_eod = true;
  prepare(config, ByteFake(), {});
  EXPECT_THAT(documents_of(folder / "out_text_document"),
              ElementsAre("caf\xC3\xA9\f", "two\nlines\f", "last\f"));
  // An empty text is a document without sequences, as in Megatron.
  EXPECT_THAT(documents_of(folder / "out_title_document"), ElementsAre("A\f", "", "C\f"));
  EXPECT_EQ(IndexedDataset(folder / "out_title_document").index().num_sequences(), 2);
}

TEST(Prepare, WritesAManifestThatLoadingChecks) {
  const TemporaryFolder folder;
  spit(folder / "a.txt", "abc");
  PrepareConfig config = config_for(folder, {"a.txt"});
  config.append_eod = true;
  prepare(config, ByteFake(), {});
  const std::string prefix = folder / "out_text_document";
  const auto manifest = read_manifest(prefix + ".json");
  ASSERT_TRUE(manifest);
  EXPECT_EQ(manifest->tokenizer_hash, "bytes");
  EXPECT_EQ(manifest->vocab_size, 257);
  EXPECT_EQ(manifest->end_of_document, 256);
  EXPECT_EQ(manifest->token_type, "uint16");
  EXPECT_EQ(manifest->num_documents, 1);
  EXPECT_EQ(manifest->num_tokens, 4);
  EXPECT_EQ(manifest->text_bytes, 3);
  ASSERT_EQ(manifest->sources.size(), 1U);
  EXPECT_EQ(manifest->sources[0].path, folder / "a.txt");
  EXPECT_EQ(manifest->sources[0].bytes, 3);

  const IndexedDataset data(prefix);
  check_manifest(data, 300, "bytes");
  check_manifest(data, 257, "");
  EXPECT_THAT(message_of([&] { check_manifest(data, 256, ""); }),
              HasSubstr("vocabulary of 257 ids, but the model has 256"));
  EXPECT_THAT(message_of([&] { check_manifest(data, 257, "other"); }),
              HasSubstr("made with tokenizer bytes, but this run uses other"));
  spit(prefix + ".json", "{}");
  EXPECT_THAT(message_of([&] { check_manifest(data, 257, ""); }), HasSubstr("not the manifest"));
  std::filesystem::remove(prefix + ".json");
  check_manifest(data, 1, "other");  // data of another program cannot be checked
}

/// Words of many lengths, single and double line ends, other scripts, long lines.
std::string varied_text(size_t bytes) {
  std::string text;
  NumpyRandom random(1);
  const char* const pieces[] = {" ",      "\n",      "\n\n",     "word",         "x",
                                ". ",     "\r\n",    "\t",       "\xE3\x80\x80", "\xE4\xB8\xAD",
                                "\n  in", " 12345 ", "\xC3\xA9", "\n\xD0\x96",   "\xC2\xA0"};
  while (text.size() < bytes) text += pieces[random.interval(std::size(pieces) - 1)];
  return text;
}

TEST(DocumentReader, ChunksAreTheFileAndCutsAreSafe) {
  const TemporaryFolder folder;
  const std::string text = varied_text(300'000);
  spit(folder / "a.txt", text);
  DocumentReader reader({folder / "a.txt"}, {.chunk_bytes = 1000});
  std::string joined;
  TextChunk chunk;
  int64_t num_chunks = 0;
  while (reader.next(chunk)) {
    EXPECT_EQ(chunk.first_line, 1 + std::count(joined.begin(), joined.end(), '\n'));
    joined += chunk.text;
    ++num_chunks;
    if (joined.size() == text.size()) break;
    EXPECT_TRUE(is_safe_cut_at_line(text, joined.size()) ||
                is_safe_cut_at_space(text, joined.size()))
        << joined.size();
  }
  EXPECT_EQ(joined, text);
  EXPECT_GT(num_chunks, 200);
}

TEST(DocumentReader, SafeCutsKeepWhiteSpaceTogether) {
  EXPECT_TRUE(is_safe_cut_at_line("ab\ncd", 3));
  EXPECT_TRUE(is_safe_cut_at_line("a.\n\xE4\xB8\xAD", 3));
  EXPECT_TRUE(is_safe_cut_at_line("\xE3\x80\x82\n1", 4));   // after an ideographic full stop
  EXPECT_FALSE(is_safe_cut_at_line("\xE3\x80\x80\n1", 4));  // after an ideographic space
  EXPECT_FALSE(is_safe_cut_at_line("\xE2\x80\x83\n1", 4));  // after an em space
  EXPECT_FALSE(is_safe_cut_at_line("a\n\nb", 3));
  EXPECT_FALSE(is_safe_cut_at_line("a\r\nb", 3));
  EXPECT_FALSE(is_safe_cut_at_line("a\n b", 2));
  EXPECT_FALSE(is_safe_cut_at_line("a\n\xE3\x80\x80", 2));
  EXPECT_FALSE(is_safe_cut_at_line("a\n/b", 2));  // some patterns join "\n/"
  EXPECT_FALSE(is_safe_cut_at_line("a\n", 2));
  EXPECT_FALSE(is_safe_cut_at_line("\na", 1));
  EXPECT_TRUE(is_safe_cut_at_space("a 1", 1));
  EXPECT_FALSE(is_safe_cut_at_space("a  1", 1));
  EXPECT_FALSE(is_safe_cut_at_space("a. b", 2));
}

TEST(Prepare, DoesNotDependOnWorkersAndStaysInItsMemory) {
  const TemporaryFolder folder;
  const std::string text = varied_text(8 << 20);
  spit(folder / "a.txt", text);
  std::string jsonl;
  for (size_t at = 0; at < text.size(); at += 5000 + at % 999) {
    std::string part = text.substr(at, 5000);
    jsonl += nlohmann::json{{"text", part}}.dump(-1, ' ', true,
                                                 nlohmann::json::error_handler_t::replace) +
             "\n";
  }
  spit(folder / "b.jsonl", jsonl);
  PrepareConfig config = config_for(folder, {"a.txt", "b.jsonl"});
  config.document_boundary = DocumentBoundary::blank_line;
  config.append_eod = true;
  config.buffer_megabytes = 1;
  std::string bin, index;
  for (const int64_t workers : {1, 2, 7}) {
    config.workers = workers;
    int64_t last = 0;
    const PrepareResult result = prepare(config, ByteFake(), [&](const PrepareProgress& state) {
      EXPECT_GT(state.bytes_done, last);
      last = state.bytes_done;
      EXPECT_EQ(state.bytes_total, static_cast<int64_t>(text.size() + jsonl.size()));
    });
    EXPECT_EQ(last, static_cast<int64_t>(text.size() + jsonl.size()));
    // At most the limit and one chunk of text is held when reading pauses; each byte becomes at
    // most one id of 4 bytes, in a vector that may have doubled, and a few marks: less than 16
    // times.
    EXPECT_LT(result.peak_bytes, 16 * (1'000'000 + (1 << 20)));
    EXPECT_GT(result.datasets[0].manifest.num_documents, 1000);
    if (bin.empty()) {
      bin = slurp(folder / "out_text_document.bin");
      index = slurp(folder / "out_text_document.idx");
    }
    EXPECT_TRUE(slurp(folder / "out_text_document.bin") == bin);
    EXPECT_TRUE(slurp(folder / "out_text_document.idx") == index);
  }
}

TEST(OrderedPipeline, HoldsNoMoreThanItsLimit) {
  struct Block {
    int64_t size = 0;
    int64_t bytes() const { return size; }
  };
  int64_t number = 0;
  int64_t written = 0;
  OrderedPipeline<Block, Block> pipeline(
      {.read =
           [&](Block& block) {
             block.size = 100;
             return number++ < 10'000;
           },
       .transform = [](const Block& in, Block& out) { out = in; },
       .write = [&](const Block&) { ++written; }},
      4, 1000);
  pipeline.run();
  EXPECT_EQ(written, 10'000);
  // Twelve blocks: ten, one more read, and both sides of each block in a worker's hands.
  EXPECT_LE(pipeline.peak_bytes(), 1000 + 100 + 4 * 100);
  EXPECT_GT(pipeline.peak_bytes(), 0);
}

/// Runs `prepare` on one file of this content and expects an error and no new file.
std::string error_for(const std::string& name, const std::string& content, PrepareConfig config) {
  const TemporaryFolder folder;
  spit(folder / name, content);
  config.input = {folder / name};
  config.output_prefix = folder / "out";
  const std::string message = message_of([&] { prepare(config, ByteFake(), {}); });
  EXPECT_THAT(folder.files(), ElementsAre(name)) << message;
  return message;
}

TEST(Prepare, ErrorsNameFileLineAndKeyAndLeaveNothing) {
  const PrepareConfig config;
  const std::string good = "{\"text\": \"a\"}\n";
  EXPECT_THAT(error_for("a.jsonl", good + "\n{\"txt\": \"a\"}\n", config),
              testing::AllOf(HasSubstr("a.jsonl:3"), HasSubstr("no key \"text\"")));
  EXPECT_THAT(
      error_for("a.jsonl", good + "{\"text\": 1}\n", config),
      testing::AllOf(HasSubstr("a.jsonl:2"), HasSubstr("key \"text\" holds a JSON number")));
  EXPECT_THAT(error_for("a.jsonl", good + good + "[1]\n", config), HasSubstr("a.jsonl:3"));
  EXPECT_THAT(error_for("a.jsonl", "{\"text\": \"a\n", config), HasSubstr("not a JSON document"));
  EXPECT_THAT(error_for("a.jsonl", "{\"text\": \"\xff\"}\n", config), HasSubstr("a.jsonl:1"));
  EXPECT_THAT(error_for("a.jsonl", good + "plain\n" + good, config), HasSubstr("a.jsonl:2"));
  PrepareConfig two_keys;
  two_keys.json_keys = {"text", "title"};
  EXPECT_THAT(error_for("a.txt", "text", two_keys), HasSubstr("is plain text"));
  // A late error, when tokens of many chunks are already written.
  std::string late;
  for (int i = 0; i < 200'000; ++i) late += good;
  EXPECT_THAT(error_for("a.jsonl", late + "{}\n", config), HasSubstr("a.jsonl:200001"));
}

TEST(Prepare, AFailureKeepsTheOlderDataset) {
  const TemporaryFolder folder;
  spit(folder / "a.jsonl", "{\"text\": \"old\"}\n");
  const PrepareConfig config = config_for(folder, {"a.jsonl"});
  prepare(config, ByteFake(), {});
  spit(folder / "a.jsonl", "{\"text\": \"new\"}\n{}\n");
  EXPECT_THROW(prepare(config, ByteFake(), {}), Error);
  EXPECT_THAT(documents_of(folder / "out_text_document"), ElementsAre("old"));
}

TEST(Prepare, RefusesBadOptions) {
  const TemporaryFolder folder;
  spit(folder / "a.txt", "a");
  const auto run = [&](const std::function<void(PrepareConfig&)>& change) {
    PrepareConfig config = config_for(folder, {"a.txt"});
    change(config);
    EXPECT_THROW(prepare(config, ByteFake(), {}), UsageError);
    EXPECT_THAT(folder.files(), ElementsAre("a.txt"));
  };
  run([](PrepareConfig& config) { config.input.clear(); });
  run([](PrepareConfig& config) { config.input.push_back("/nowhere/x"); });
  run([](PrepareConfig& config) { config.output_prefix.clear(); });
  run([](PrepareConfig& config) { config.json_keys.clear(); });
  run([](PrepareConfig& config) { config.json_keys = {"a", "a"}; });
  run([](PrepareConfig& config) { config.workers = -1; });
  run([](PrepareConfig& config) { config.buffer_megabytes = 0; });
}

/// A tokenizer whose ids do not fit its vocabulary.
class BrokenFake : public ByteFake {
 public:
  int64_t vocab_size() const override { return 100; }
};

TEST(Prepare, RefusesIdsOutsideTheVocabulary) {
  const TemporaryFolder folder;
  spit(folder / "a.txt", "abcd");
  EXPECT_THAT(message_of([&] { prepare(config_for(folder, {"a.txt"}), BrokenFake(), {}); }),
              HasSubstr("token id 100 in sequence 0 is outside the vocabulary of 100"));
  EXPECT_THAT(folder.files(), ElementsAre("a.txt"));
}

}  // namespace
}  // namespace phalanx
