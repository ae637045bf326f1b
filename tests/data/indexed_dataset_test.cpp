// The dataset format: both directions against NumPy's bytes, and every kind of damage.
#include "data/indexed_dataset.h"

#include <gmock/gmock.h>

#include <cstring>
#include <functional>

#include "tests/data/data_helpers.h"

namespace phalanx {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

void copy_dataset(const std::string& from, const std::string& to, int64_t vocab_size) {
  const IndexedDataset data(from);
  IndexedDatasetWriter writer(to, vocab_size);
  std::vector<int32_t> tokens;
  for (int64_t d = 0; d < data.index().num_documents(); ++d) {
    for (int64_t s = data.index().document_begin(d); s < data.index().document_begin(d + 1); ++s) {
      tokens.resize(static_cast<size_t>(data.index().length(s)));
      data.read(s, 0, tokens);
      writer.append(tokens);
      writer.end_sequence();
    }
    writer.end_document();
  }
  writer.finish();
  EXPECT_FALSE(file_exists(to + ".idx"));
  writer.publish();
}

TEST(IndexedDataset, ReadsAndWritesMegatronsBytes) {
  const TemporaryFolder folder;
  copy_dataset(golden_path("indexed_u16"), folder / "a", 1000);
  copy_dataset(golden_path("indexed_i32"), folder / "b", 70000);
  for (const std::string extension : {".bin", ".idx"}) {
    EXPECT_EQ(slurp(folder / ("a" + extension)), slurp(golden_path("indexed_u16" + extension)));
    EXPECT_EQ(slurp(folder / ("b" + extension)), slurp(golden_path("indexed_i32" + extension)));
  }
  EXPECT_EQ(folder.files().size(), 4U);  // no temporary file is left
}

TEST(IndexedDataset, ReadsPartsAndRefusesOthers) {
  const TemporaryFolder folder;
  write_dataset(folder / "a", {{1, 2, 3}, {}, {4, 5, 6, 7}}, 70000);
  const IndexedDataset data(folder / "a");
  EXPECT_EQ(data.index().num_tokens(), 7);
  std::vector<int32_t> out(2);
  data.read(2, 1, out);
  EXPECT_EQ(out, (std::vector<int32_t>{5, 6}));
  EXPECT_THROW(data.read(2, 3, out), Error);
  EXPECT_THROW(data.read(2, -1, out), Error);
  EXPECT_THROW(data.read(3, 0, out), Error);
  EXPECT_THROW(data.read(-1, 0, out), Error);
}

TEST(IndexedDataset, AnEmptyDatasetIsOne) {
  const TemporaryFolder folder;
  write_dataset(folder / "a", {}, 10);
  EXPECT_EQ(IndexedDataset(folder / "a").index().num_documents(), 0);
}

TEST(IndexedDataset, ChoosesMegatronsTokenType) {
  EXPECT_EQ(best_token_type(65499), TokenType::u16);
  EXPECT_EQ(best_token_type(65500), TokenType::i32);
}

TEST(IndexedDataset, AnUnfinishedWriterLeavesNothing) {
  const TemporaryFolder folder;
  {
    IndexedDatasetWriter writer(folder / "a", 10);
    writer.append(std::vector<int32_t>{1, 2});
    writer.end_sequence();
    writer.end_document();
    writer.finish();
  }
  {
    IndexedDatasetWriter writer(folder / "a", 10);
    EXPECT_THAT(message_of([&] {
                  writer.append(std::vector<int32_t>{1, 10});
                }),
                HasSubstr("token id 10 in sequence 0"));
  }
  EXPECT_THAT(folder.files(), IsEmpty());
  EXPECT_THROW(IndexedDatasetWriter(folder / "missing/a", 10), UsageError);
}

TEST(IndexedDataset, PublishingReplacesAnOlderDataset) {
  const TemporaryFolder folder;
  write_dataset(folder / "a", {{1}}, 10);
  write_dataset(folder / "a", {{1, 2}, {3}}, 10);
  EXPECT_EQ(IndexedDataset(folder / "a").index().num_tokens(), 3);
  EXPECT_EQ(folder.files().size(), 2U);
}

template <class T>
void put(std::string& bytes, size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof(T));
}

struct Damage {
  const char* message;
  std::function<void(std::string& index)> apply;
};

// Three sequences of 3, 0 and 4 tokens in 3 documents: lengths at 34, offsets at 46, marks at 70.
const Damage kDamages[] = {
    {"does not start with MMIDIDX", [](std::string& s) { s[0] = 'X'; }},
    {"version 2", [](std::string& s) { put<uint64_t>(s, 9, 2); }},
    {"type code 7", [](std::string& s) { s[17] = 7; }},
    {"type code 0", [](std::string& s) { s[17] = 0; }},
    {"type code 9", [](std::string& s) { s[17] = 9; }},
    {"does not lie in the .bin", [](std::string& s) { s[17] = 4; }},
    {"the file is cut", [](std::string& s) { put<uint64_t>(s, 18, 4); }},
    {"the file is cut", [](std::string& s) { put(s, 18, ~uint64_t{0} / 12 + 2); }},
    {"the file is cut", [](std::string& s) { put(s, 26, ~uint64_t{0}); }},
    {"the file is cut", [](std::string& s) { put(s, 26, (uint64_t{1} << 61) + 4); }},
    {"bytes too many", [](std::string& s) { put<uint64_t>(s, 26, 2); }},
    {"bytes too many", [](std::string& s) { s += "ab"; }},
    {"the file is cut", [](std::string& s) { s.pop_back(); }},
    {"too few for an index", [](std::string& s) { s.resize(33); }},
    {"too few for an index", [](std::string& s) { s.clear(); }},
    {"sequence 1 has length -1", [](std::string& s) { put<int32_t>(s, 38, -1); }},
    {"sequence 2 (5 tokens", [](std::string& s) { put<int32_t>(s, 42, 5); }},
    {"sequence 2 (4 tokens at byte 8)", [](std::string& s) { put<int64_t>(s, 62, 8); }},
    {"sequence 0 (3 tokens at byte -2)", [](std::string& s) { put<int64_t>(s, 46, -2); }},
    {"sequence 0", [](std::string& s) { put(s, 46, std::numeric_limits<int64_t>::max() - 1); }},
    {"begins at sequence 1", [](std::string& s) { put<int64_t>(s, 70, 1); }},
    {"not sorted: 1 before 0", [](std::string& s) { put<int64_t>(s, 86, 0); }},
    {"not sorted", [](std::string& s) { put<int64_t>(s, 78, -1); }},
    {"the documents end at sequence 2", [](std::string& s) { put<int64_t>(s, 94, 2); }},
};

TEST(IndexedDataset, EveryDamageIsNamed) {
  const TemporaryFolder folder;
  write_dataset(folder / "a", {{1, 2, 3}, {}, {4, 5, 6, 7}}, 10);
  const std::string good = slurp(folder / "a.idx");
  ASSERT_EQ(good.size(), 102U);
  for (const Damage& damage : kDamages) {
    std::string bad = good;
    damage.apply(bad);
    spit(folder / "a.idx", bad);
    const std::string message = message_of([&] { IndexedDataset data(folder / "a"); });
    EXPECT_THAT(message, HasSubstr(damage.message));
    EXPECT_THAT(message, HasSubstr("a.idx"));
  }
}

TEST(IndexedDataset, ACutBinIsNoticedAndModesAreAllowed) {
  const TemporaryFolder folder;
  write_dataset(folder / "a", {{1, 2, 3}, {4, 5, 6, 7}}, 10);
  spit(folder / "a.idx", slurp(folder / "a.idx") + std::string(2, '\0'));  // a mode per sequence
  EXPECT_EQ(IndexedDataset(folder / "a").index().num_sequences(), 2);
  std::filesystem::resize_file(folder / "a.bin", 13);
  EXPECT_THAT(message_of([&] { IndexedDataset data(folder / "a"); }),
              HasSubstr("sequence 1 (4 tokens at byte 6) does not lie in the .bin of 13 bytes"));
  std::filesystem::remove(folder / "a.bin");
  EXPECT_THROW(IndexedDataset(folder / "a"), UsageError);
}

}  // namespace
}  // namespace phalanx
