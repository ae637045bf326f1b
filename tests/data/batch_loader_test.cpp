// The loader: Megatron's samples, independence of shards, masks, errors, and its thread.
#include "data/batch_loader.h"

#include <gmock/gmock.h>

#include <set>

#include "tests/allocation_count.h"
#include "tests/data/data_helpers.h"

namespace phalanx {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using Samples = std::vector<std::vector<int32_t>>;

/// Copies a golden dataset, so that its cache lies in the test's own folder.
std::string golden_dataset(const TemporaryFolder& folder, const std::string& name) {
  for (const char* extension : {".bin", ".idx"})
    std::filesystem::copy_file(golden_path(name + extension), folder / (name + extension));
  return folder / name;
}

Samples read_samples(const SampleSource& source, size_t count, int64_t seq_length) {
  Samples samples(count, std::vector<int32_t>(static_cast<size_t>(seq_length + 1)));
  for (size_t i = 0; i < count; ++i) source.read(static_cast<int64_t>(i), samples[i]);
  return samples;
}

void expect_golden(const DataConfig& config, DataSplit split, int64_t wanted, const char* name) {
  const auto expected = golden_order()[name].get<Samples>();
  // Twice: the second time from the cache files of the first.
  for (int round = 0; round < 2; ++round) {
    const auto source = make_sample_source(config, split, wanted, 1234, {.size = 70000});
    ASSERT_GE(source->num_samples(), wanted);
    ASSERT_EQ(source->num_samples(), static_cast<int64_t>(expected.size()));
    EXPECT_EQ(read_samples(*source, expected.size(), 12), expected);
  }
}

TEST(SampleSource, OneDatasetAndBlendsEqualMegatron) {
  const TemporaryFolder folder;
  DataConfig config{.split = "80,20", .seq_length = 12};
  config.data_path = {golden_dataset(folder, "indexed_u16")};
  expect_golden(config, DataSplit::train, 40, "train_samples");
  expect_golden(config, DataSplit::valid, 10, "valid_samples");
  config.data_cache_path = folder / "cache";
  config.data_path = {"0.7", config.data_path[0], "0.3", golden_dataset(folder, "indexed_i32")};
  expect_golden(config, DataSplit::train, 50, "blended_samples");
  for (const std::string& name : folder.files()) EXPECT_EQ(name.find(".tmp."), std::string::npos);
}

TEST(SampleSource, BuildersMayRace) {
  const TemporaryFolder folder;
  DataConfig config{.split = "80,20", .seq_length = 12};
  config.data_path = {golden_dataset(folder, "indexed_u16")};
  std::vector<Samples> seen(8);
  std::vector<std::thread> threads;
  for (Samples& samples : seen)
    threads.emplace_back([&] {
      const auto source = make_sample_source(config, DataSplit::train, 40, 1234, {.size = 70000});
      samples = read_samples(*source, 40, 12);
    });
  for (std::thread& thread : threads) thread.join();
  const auto expected = golden_order()["train_samples"].get<Samples>();
  for (const Samples& samples : seen)
    EXPECT_TRUE(std::equal(samples.begin(), samples.end(), expected.begin()));
}

TEST(SampleSource, DataPerSplitAndBlendsBySize) {
  const TemporaryFolder folder;
  write_dataset(folder / "a", {std::vector<int32_t>(41, 1)}, 10);
  write_dataset(folder / "b", {std::vector<int32_t>(21, 2)}, 10);
  DataConfig config{.seq_length = 4};
  config.train_data_path = {folder / "a", folder / "b"};
  config.valid_data_path = {folder / "b"};
  EXPECT_TRUE(has_data(config, DataSplit::valid));
  EXPECT_FALSE(has_data(config, DataSplit::test));
  const auto train = make_sample_source(config, DataSplit::train, -1, 1, {.size = 10});
  EXPECT_EQ(train->num_samples(), 15);
  int64_t from_a = 0;
  for (const auto& sample : read_samples(*train, 15, 4)) from_a += sample[0] == 1;
  EXPECT_EQ(from_a, 10);
  EXPECT_EQ(make_sample_source(config, DataSplit::valid, 5, 1, {.size = 10})->num_samples(), 5);
  EXPECT_THAT(message_of([&] { make_sample_source(config, DataSplit::test, 5, 1, {.size = 10}); }),
              HasSubstr("no data for test"));
  EXPECT_THAT(
      message_of([&] { make_sample_source(config, DataSplit::train, 16, 1, {.size = 10}); }),
      HasSubstr("hold 15 samples, fewer than the 16 wanted"));
}

TEST(SampleSource, BlendsAreReadByMegatronsRule) {
  EXPECT_EQ(parse_blend({"a"}).prefixes.size(), 1U);
  EXPECT_TRUE(parse_blend({"a", "b"}).weights.empty());
  EXPECT_EQ(parse_blend({"a", "b", "c"}).prefixes.size(), 3U);
  EXPECT_THAT(parse_blend({"0.25", "a", "3", "b"}).weights, ElementsAre(0.25, 3.0));
  EXPECT_THROW(parse_blend({"0.25", "a", "b", "c"}), UsageError);
}

DataConfig one_dataset(const TemporaryFolder& folder, int64_t seq_length) {
  std::vector<std::vector<int32_t>> documents;
  for (int32_t d = 0; d < 50; ++d) {
    documents.emplace_back();
    for (int32_t i = 0; i < 20 + d % 7; ++i) documents.back().push_back((d * 31 + i) % 256);
    documents.back().push_back(256);
  }
  write_dataset(folder / "data", documents, 257);
  DataConfig config{.split = "100,0,0", .seq_length = seq_length};
  config.data_path = {folder / "data"};
  return config;
}

constexpr BatchPlan kPlan{
    .seq_length = 16, .micro_batch_size = 2, .global_batch_size = 8, .num_samples = 80, .seed = 5};
const Vocabulary kVocabulary{.size = 257, .end_of_document = 256, .tokenizer_hash = ""};

/// The sequences (tokens, then the last target) of one batch of one shard.
void collect(const GlobalBatch& batch, std::multiset<std::vector<int32_t>>& sequences) {
  for (const MicroBatch& micro : batch.micro_batches)
    for (int64_t b = 0; b < micro.sequences; ++b) {
      std::vector<int32_t> tokens;
      for (int64_t s = 0; s < micro.positions; ++s)
        tokens.push_back(micro.tokens[static_cast<size_t>(s * micro.sequences + b)]);
      tokens.push_back(
          micro.targets[static_cast<size_t>((micro.positions - 1) * micro.sequences + b)]);
      sequences.insert(tokens);
    }
}

TEST(BatchLoader, AGlobalBatchDoesNotDependOnTheNumberOfShards) {
  const TemporaryFolder folder;
  const DataConfig config = one_dataset(folder, 16);
  const auto source = make_sample_source(config, DataSplit::train, 80, 5, kVocabulary);
  const Samples samples = read_samples(*source, 80, 16);
  for (const auto& [num_shards, micro_batch] : {std::pair{1, 8}, {1, 2}, {2, 2}, {4, 1}, {4, 2}}) {
    std::vector<std::unique_ptr<BatchLoader>> loaders;
    for (int shard = 0; shard < num_shards; ++shard) {
      BatchPlan plan = kPlan;
      plan.micro_batch_size = micro_batch;
      plan.num_shards = num_shards;
      plan.shard = shard;
      loaders.push_back(make_batch_loader(config, DataSplit::train, plan, kVocabulary));
    }
    for (int64_t step = 0; step < 10; ++step) {
      std::multiset<std::vector<int32_t>> seen;
      for (auto& loader : loaders) {
        const GlobalBatch& batch = loader->next();
        EXPECT_EQ(batch.first_sample, 8 * step);
        EXPECT_EQ(batch.num_samples, 8);
        collect(batch, seen);
      }
      EXPECT_EQ(seen, std::multiset<std::vector<int32_t>>(samples.begin() + 8 * step,
                                                          samples.begin() + 8 * (step + 1)));
    }
  }
}

TEST(BatchLoader, PutsSamplesWhereMegatronsSamplerDoes) {
  const TemporaryFolder folder;
  const DataConfig config = one_dataset(folder, 16);
  const auto source = make_sample_source(config, DataSplit::train, 80, 5, kVocabulary);
  const Samples samples = read_samples(*source, 80, 16);
  BatchPlan plan = kPlan;
  plan.num_shards = 2;
  plan.shard = 1;
  plan.first_sample = 24;
  const auto loader = make_batch_loader(config, DataSplit::train, plan, kVocabulary);
  const GlobalBatch& batch = loader->next();
  ASSERT_EQ(batch.micro_batches.size(), 2U);
  // Groups of 2 * 2 samples from number 24 on; shard 1 has the second half of each.
  for (size_t m = 0; m < 2; ++m)
    for (size_t s = 0; s < 16; ++s)
      for (size_t b = 0; b < 2; ++b) {
        const auto& sample = samples[24 + 4 * m + 2 + b];
        EXPECT_EQ(batch.micro_batches[m].tokens[2 * s + b], sample[s]);
        EXPECT_EQ(batch.micro_batches[m].targets[2 * s + b], sample[s + 1]);
      }
}

TEST(BatchLoader, ResumesAnywhereAndSeeks) {
  const TemporaryFolder folder;
  const DataConfig config = one_dataset(folder, 16);
  const auto straight = make_batch_loader(config, DataSplit::train, kPlan, kVocabulary);
  std::vector<std::vector<int32_t>> tokens;
  for (int step = 0; step < 10; ++step) tokens.push_back(straight->next().micro_batches[1].tokens);
  EXPECT_EQ(straight->consumed_samples(), 80);
  BatchPlan plan = kPlan;
  plan.first_sample = 40;
  const auto resumed = make_batch_loader(config, DataSplit::train, plan, kVocabulary);
  for (size_t step = 5; step < 10; ++step)
    EXPECT_EQ(resumed->next().micro_batches[1].tokens, tokens[step]);
  resumed->seek(8);
  EXPECT_EQ(resumed->next().micro_batches[1].tokens, tokens[1]);
  EXPECT_EQ(resumed->consumed_samples(), 16);
}

TEST(BatchLoader, SaysWhenSamplesAreConsumed) {
  const TemporaryFolder folder;
  const auto loader =
      make_batch_loader(one_dataset(folder, 16), DataSplit::train, kPlan, kVocabulary);
  for (int step = 0; step < 10; ++step) loader->next();
  for (int attempt = 0; attempt < 2; ++attempt)
    EXPECT_THAT(message_of([&] { loader->next(); }), HasSubstr("all 80 samples are consumed"));
  loader->seek(0);
  EXPECT_EQ(loader->next().first_sample, 0);
}

TEST(BatchLoader, MarksDocuments) {
  const TemporaryFolder folder;
  // One sample: a document's end, then documents of 2 tokens, 1 token (its end only), and a rest.
  write_dataset(folder / "data", {{7, 256, 8, 256, 256, 9, 10, 11, 12}}, 257);
  DataConfig config{.split = "1", .seq_length = 8};
  config.data_path = {folder / "data"};
  const BatchPlan plan{.seq_length = 8, .num_samples = 1};
  const auto plain = make_batch_loader(config, DataSplit::train, plan, kVocabulary);
  const MicroBatch& without = plain->next().micro_batches[0];
  EXPECT_TRUE(without.position_ids.empty());
  EXPECT_TRUE(without.document_start.empty());
  EXPECT_THAT(without.targets, ElementsAre(256, 8, 256, 256, 9, 10, 11, 12));

  config.eod_mask_loss = config.reset_position_ids = config.reset_attention_mask = true;
  const auto masked = make_batch_loader(config, DataSplit::train, plan, kVocabulary);
  const MicroBatch& batch = masked->next().micro_batches[0];
  EXPECT_THAT(batch.tokens, ElementsAre(7, 256, 8, 256, 256, 9, 10, 11));
  EXPECT_THAT(batch.targets, ElementsAre(256, -1, 256, -1, -1, 10, 11, 12));
  EXPECT_THAT(batch.position_ids, ElementsAre(0, 1, 0, 1, 0, 0, 1, 2));
  EXPECT_THAT(batch.document_start, ElementsAre(0, 0, 2, 2, 4, 5, 5, 5));
}

TEST(BatchLoader, DocumentStartIsSequenceMajor) {
  const TemporaryFolder folder;
  DataConfig config = one_dataset(folder, 16);
  config.reset_attention_mask = config.reset_position_ids = true;
  const auto loader = make_batch_loader(config, DataSplit::train, kPlan, kVocabulary);
  const MicroBatch& batch = loader->next().micro_batches[0];
  for (size_t s = 0; s < 16; ++s)
    for (size_t b = 0; b < 2; ++b)
      EXPECT_EQ(batch.position_ids[s * 2 + b],
                static_cast<int32_t>(s) - batch.document_start[b * 16 + s]);
}

TEST(BatchLoader, DoesNotAllocateOnceItRuns) {
  const TemporaryFolder folder;
  DataConfig config = one_dataset(folder, 16);
  config.reset_attention_mask = config.reset_position_ids = true;
  const auto loader = make_batch_loader(config, DataSplit::train, kPlan, kVocabulary);
  loader->next();
  loader->next();
  const int64_t before = count_allocations();
  for (int step = 2; step < 8; ++step) loader->next();  // the thread's end, an error, allocates
  EXPECT_EQ(count_allocations(), before);
}

TEST(BatchLoader, NamesATokenOutsideTheVocabulary) {
  const TemporaryFolder folder;
  const DataConfig config = one_dataset(folder, 16);
  const auto loader =
      make_batch_loader(config, DataSplit::train, kPlan, {.size = 100, .end_of_document = 99});
  const std::string message = message_of([&] {
    for (int step = 0; step < 10; ++step) loader->next();
  });
  EXPECT_THAT(message, HasSubstr("data (train) holds token id "));
  EXPECT_THAT(message, HasSubstr("outside the vocabulary of 100"));
}

TEST(BatchLoader, NamesSizesThatWork) {
  BatchPlan plan = kPlan;
  plan.num_shards = 3;
  EXPECT_THAT(message_of([&] { check_batch_plan(plan); }), HasSubstr("try 6 or 12"));
  plan.global_batch_size = 4;
  EXPECT_THAT(message_of([&] { check_batch_plan(plan); }), HasSubstr("try 6"));
  for (const int64_t bad : {0, -1}) {
    plan.micro_batch_size = bad;
    EXPECT_THROW(check_batch_plan(plan), UsageError);
  }
  plan = kPlan;
  plan.global_batch_size = 0;
  EXPECT_THROW(check_batch_plan(plan), UsageError);
}

TEST(BatchLoader, NamesDataThatIsMissingOrTooSmall) {
  const TemporaryFolder folder;
  DataConfig config = one_dataset(folder, 16);
  const auto load = [&](DataSplit split) {
    BatchPlan plan = kPlan;
    plan.seq_length = config.seq_length;
    return message_of([&] { make_batch_loader(config, split, plan, kVocabulary); });
  };
  EXPECT_THAT(load(DataSplit::valid), HasSubstr("gives no sequence to the valid split"));
  config.seq_length = 100000;
  EXPECT_THAT(load(DataSplit::train), HasSubstr("has 1197 tokens, one sample needs 100001"));
  config.data_path = {folder / "dat"};
  EXPECT_THAT(load(DataSplit::train), HasSubstr("there is no dataset"));
  std::filesystem::copy_file(folder / "data.idx", folder / "dat_text_document.idx");
  EXPECT_THAT(load(DataSplit::train), HasSubstr("did you mean"));
  config.train_data_path = {folder / "data"};
  EXPECT_THAT(load(DataSplit::train), HasSubstr("give either --data-path or"));
  EXPECT_THAT(load(DataSplit::train), testing::Not(HasSubstr("sample")));
  config = DataConfig{.seq_length = 16};
  EXPECT_THAT(load(DataSplit::train), HasSubstr("no data for train"));
}

TEST(MockDataset, IsAPureFunctionAndLearnable) {
  DataConfig config{.mock_data = true, .seq_length = 64};
  const Vocabulary vocabulary{.size = 50, .end_of_document = 49, .tokenizer_hash = ""};
  const auto one = make_sample_source(config, DataSplit::train, 10, 1, vocabulary);
  const auto two = make_sample_source(config, DataSplit::train, 10, 1, vocabulary);
  const auto valid = make_sample_source(config, DataSplit::valid, 10, 1, vocabulary);
  const Samples samples = read_samples(*one, 10, 64);
  EXPECT_EQ(samples, read_samples(*two, 10, 64));
  EXPECT_NE(samples, read_samples(*valid, 10, 64));
  EXPECT_NE(samples[0], samples[1]);
  for (const auto& sample : samples)
    for (size_t i = 1; i < sample.size(); ++i)
      EXPECT_TRUE(sample[i] == sample[i - 1] + 1 || sample[i] == 49 || sample[i - 1] == 49);
}

}  // namespace
}  // namespace phalanx
