// What the user says about training data, and the blends made from it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/data_order.h"
#include "data/sample_source.h"
#include "kernels/base/fields.h"

namespace phalanx {

struct DataConfig {
  std::vector<std::string> data_path = {};  // PREFIX, or weight PREFIX weight PREFIX ...
  std::vector<std::string> train_data_path =
      {};  // one dataset or blend per split, instead of data_path
  std::vector<std::string> valid_data_path = {};
  std::vector<std::string> test_data_path = {};
  std::string split = "969,30,1";
  std::string data_cache_path = {};
  bool mock_data = false;
  int64_t seq_length = 1024;
  bool eod_mask_loss = false;
  bool reset_position_ids = false;
  bool reset_attention_mask = false;
};

template <class Config, class Visitor>
requires ConfigOf<Config, DataConfig>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Data");
  visit("data-path", config.data_path,
        "prefix of .bin and .idx, or: weight prefix weight prefix ...; cut by --split");
  visit("train-data-path", config.train_data_path, "as --data-path, for training only");
  visit("valid-data-path", config.valid_data_path, "as --data-path, for evaluation only");
  visit("test-data-path", config.test_data_path, "as --data-path, for the final test only");
  visit("split", config.split, "shares of train, valid and test in --data-path");
  visit("data-cache-path", config.data_cache_path,
        "folder for index files; empty: PREFIX/cache beside the data");
  visit("mock-data", config.mock_data, "synthetic tokens instead of files");
  visit("seq-length", config.seq_length, "positions per training sample");
  visit("eod-mask-loss", config.eod_mask_loss, "no loss where the input is an end of document");
  visit("reset-position-ids", config.reset_position_ids, "positions restart in each document");
  visit("reset-attention-mask", config.reset_attention_mask, "attention stays inside a document");
}

/// Datasets with weights; no weights means in proportion to their sizes.
struct Blend {
  std::vector<std::string> prefixes = {};
  std::vector<double> weights = {};
};

/// Reads "w prefix w prefix" or prefixes alone, by Megatron's rule: an even list whose odd places
/// are all numbers has weights. Throws UsageError on a mixture.
Blend parse_blend(const std::vector<std::string>& words);

/// The tokenizer a run uses, as far as data can be checked against it.
struct Vocabulary {
  int64_t size = 0;
  int32_t end_of_document = -1;
  std::string tokenizer_hash = {};  // empty: not checked
};

/// At least `num_samples` samples of `split` in Megatron's order; negative: one pass over the data.
/// Builds the index files that are missing.
std::unique_ptr<SampleSource> make_sample_source(const DataConfig& config, DataSplit split,
                                                 int64_t num_samples, uint64_t seed,
                                                 const Vocabulary& vocabulary);
/// Whether `config` names any data for `split` (a split string may give it none).
bool has_data(const DataConfig& config, DataSplit split);

}  // namespace phalanx
