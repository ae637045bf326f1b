// Data order against NumPy: every array of data_order.json, and the index files.
#include "data/data_order.h"

#include <gmock/gmock.h>

#include "data/npy_file.h"
#include "tests/data/data_helpers.h"

namespace phalanx {
namespace {

using nlohmann::json;
using testing::ElementsAreArray;
using testing::HasSubstr;

TEST(NumpyRandom, ShufflesAsNumPy) {
  for (const json& shuffle : golden_order()["shuffles"]) {
    const auto expected = shuffle["values"].get<std::vector<int64_t>>();
    std::vector<int64_t> values(expected.size());
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int64_t>(i);
    NumpyRandom(shuffle["seed"]).shuffle(std::span(values));
    EXPECT_EQ(values, expected) << "seed " << shuffle["seed"];
  }
}

TEST(NumpyRandom, DrawsTwoWordsForWideIntervals) {
  for (const json& interval : golden_order()["intervals"]) {
    NumpyRandom random(interval["seed"]);
    for (const json& value : interval["values"])
      EXPECT_EQ(random.interval(interval["max"]), value.get<uint64_t>());
  }
}

TEST(NumpyRandom, RefusesSeedsNumPyRefuses) {
  EXPECT_THROW(NumpyRandom{uint64_t{1} << 32}, UsageError);
}

TEST(DataOrder, NormalizesAsNumPyToTheLastBit) {
  for (const json& expected : golden_order()["normalized"]) {
    const auto weights = expected["weights"].get<std::vector<double>>();
    const auto shares = normalize_weights(weights);
    for (size_t i = 0; i < weights.size(); ++i)
      EXPECT_EQ(shares[i], weights[i] / expected["sum"].get<double>()) << weights.size();
  }
}

TEST(DataOrder, SplitsAsPythonRounds) {
  for (const json& expected : golden_order()["splits"]) {
    const auto ranges = split_sequences(expected["split"].get<std::string>(), expected["count"]);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(ranges[i].begin, expected["ranges"][i][0]) << expected;
      EXPECT_EQ(ranges[i].end, expected["ranges"][i][1]) << expected;
    }
  }
}

TEST(DataOrder, RefusesBadSplits) {
  for (const char* split : {"", "a", "1,2,3,4", "1,,2", "-1,2", "0,0,0", "nan,1", "1;2", "1,"})
    EXPECT_THROW(split_sequences(split, 10), UsageError) << split;
}

EpochPlan plan_for(const json& expected) {
  const auto lengths = expected["lengths"].get<std::vector<int64_t>>();
  int64_t tokens = 0;
  for (size_t i = expected["begin"]; i < expected["end"]; ++i) tokens += lengths[i];
  return expected["requested"].is_null()
             ? plan_one_epoch(tokens, expected["seq_length"])
             : plan_epochs(tokens, expected["seq_length"], expected["requested"]);
}

template <class Sample, class Shuffle>
void expect_order(const json& expected) {
  const EpochPlan plan = plan_for(expected);
  EXPECT_EQ(plan.epochs, expected["epochs"]);
  EXPECT_EQ(plan.separate_last, expected["separate_last"]);
  NumpyRandom random(expected["seed"]);

  std::vector<int32_t> documents(expected["document_index"].size());
  fill_document_index(documents, {expected["begin"], expected["end"]}, plan, random);
  EXPECT_THAT(documents, ElementsAreArray(expected["document_index"].get<std::vector<int32_t>>()));

  const auto lengths = expected["lengths"].get<std::vector<int64_t>>();
  std::vector<Sample> samples(2 * static_cast<size_t>(plan.num_samples + 1));
  fill_sample_index(std::span(samples), documents, expected["seq_length"],
                    [&](int64_t i) { return lengths[static_cast<size_t>(i)]; });
  std::vector<Sample> expected_samples;
  for (const json& start : expected["sample_index"])
    for (const json& value : start) expected_samples.push_back(value);
  EXPECT_THAT(samples, ElementsAreArray(expected_samples));

  std::vector<Shuffle> shuffle(static_cast<size_t>(plan.num_samples));
  fill_shuffle_index(std::span(shuffle), plan, random);
  EXPECT_THAT(shuffle, ElementsAreArray(expected["shuffle_index"].get<std::vector<Shuffle>>()));
}

TEST(DataOrder, IndicesEqualMegatrons) {
  for (const json& expected : golden_order()["orders"]) {
    expect_order<int32_t, uint32_t>(expected);
    expect_order<int64_t, int64_t>(expected);
  }
}

TEST(DataOrder, BlendsAsMegatron) {
  for (const json& expected : golden_order()["blends"]) {
    const size_t size = expected["dataset_index"].size();
    std::vector<int16_t> datasets(size);
    std::vector<int64_t> samples(size);
    fill_blending_index(datasets, samples, expected["weights"].get<std::vector<double>>());
    EXPECT_THAT(datasets, ElementsAreArray(expected["dataset_index"].get<std::vector<int16_t>>()));
    EXPECT_THAT(samples, ElementsAreArray(expected["sample_index"].get<std::vector<int64_t>>()));
  }
}

TEST(DataOrder, CountsBeyondFloatAndInt32) {
  // 2^24 + 3 tokens are not a float, 60e9 not an int32; ceil(float / n) would be off by one.
  EXPECT_EQ(plan_one_epoch((int64_t{1} << 24) + 3, 2).num_samples, (int64_t{1} << 23) + 1);
  const EpochPlan plan = plan_epochs(60'000'000'000, 4096, 100'000'000);
  EXPECT_EQ(plan.epochs, 7);  // ceil(409.6e9 / 60e9)
  EXPECT_EQ(plan.num_samples, (7 * 60'000'000'000 - 1) / 4096);
  EXPECT_FALSE(plan.separate_last);  // 12109374 of the last epoch's 14648437 are used: 82.7 %
  EXPECT_THROW(plan_epochs(100, 10, std::numeric_limits<int64_t>::max() / 4), Error);
}

TEST(DataOrder, TooFewTokensSaysHowMany) {
  EXPECT_THAT(message_of([] { plan_epochs(16, 16, 4); }),
              HasSubstr("16 tokens are too few for one sample of 16 + 1"));
}

TEST(NpyFile, WritesWhatNumPyReadsAndReadsItBack) {
  const TemporaryFolder folder;
  const std::string path = folder / "a.npy";
  const NpyShape shape{.rows = 3, .columns = 2};
  {
    NpyWriter writer(path, NpyType::i32, shape);
    auto values = writer.values<int32_t>();
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int32_t>(i) - 3;
    EXPECT_FALSE(file_exists(path));
    writer.publish();
  }
  EXPECT_EQ(folder.files(), std::vector<std::string>{"a.npy"});
  // The header as NumPy's format description (version 1.0) asks for it.
  const std::string text = slurp(path);
  EXPECT_EQ(text.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  EXPECT_THAT(text, HasSubstr("{'descr': '<i4', 'fortran_order': False, 'shape': (3, 2), }"));
  EXPECT_EQ((text.size() - 24) % 64, 0U);
  const NpyArray array(path, NpyType::i32, shape);
  EXPECT_EQ(array.at(0), -3);
  EXPECT_EQ(array.at(5), 2);
  EXPECT_THROW(array.at(6), Error);
  EXPECT_THROW(NpyArray(path, NpyType::u32, shape), Error);
  EXPECT_THROW(NpyArray(path, NpyType::i32, {.rows = 6}), Error);
  std::filesystem::resize_file(path, text.size() - 1);
  EXPECT_THAT(message_of([&] { NpyArray(path, NpyType::i32, shape); }), HasSubstr("delete it"));
}

}  // namespace
}  // namespace phalanx
