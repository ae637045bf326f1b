// From options to sample sources.
#include "data/data_config.h"

#include <cmath>
#include <cstdlib>
#include <optional>

#include "data/dataset_manifest.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr double kSurplus = 0.005;  // Megatron's mid_level_dataset_surplus

std::optional<double> parse_number(const std::string& word) {
  char* end = nullptr;
  const double value = std::strtod(word.c_str(), &end);
  if (word.empty() || *end != '\0') return std::nullopt;
  return value;
}

const std::vector<std::string>& words_of(const DataConfig& config, DataSplit split) {
  switch (split) {
    case DataSplit::train:
      return config.train_data_path;
    case DataSplit::valid:
      return config.valid_data_path;
    case DataSplit::test:
      return config.test_data_path;
  }
  return config.data_path;
}

bool is_per_split(const DataConfig& config) {
  return !config.train_data_path.empty() || !config.valid_data_path.empty() ||
         !config.test_data_path.empty();
}

/// Opens datasets of one split, all in the same way.
class SplitOpener {
 public:
  SplitOpener(const DataConfig& config, DataSplit split, uint64_t seed,
              const Vocabulary& vocabulary)
      : config_(config), split_(split), seed_(seed), vocabulary_(vocabulary) {}

  std::unique_ptr<SplitDataset> open(const std::string& prefix, int64_t num_samples) const {
    check_usage(file_exists(prefix + ".idx"), "there is no dataset ", prefix, " (", prefix,
                ".idx is missing)",
                file_exists(prefix + "_text_document.idx")
                    ? "; did you mean " + prefix + "_text_document?"
                    : "; give the name without .bin or .idx");
    auto data = std::make_shared<IndexedDataset>(prefix);
    check_manifest(*data, vocabulary_.size, vocabulary_.tokenizer_hash);
    const int64_t sequences = data->index().num_sequences();
    const SequenceRange range =
        is_per_split(config_)
            ? SequenceRange{0, sequences}
            : split_sequences(config_.split, sequences)[static_cast<size_t>(split_)];
    return std::make_unique<SplitDataset>(std::move(data),
                                          SampleOrder{.range = range,
                                                      .split = std::string(enum_name(split_)),
                                                      .seq_length = config_.seq_length,
                                                      .num_samples = num_samples,
                                                      .seed = seed_,
                                                      .cache_folder = config_.data_cache_path});
  }

 private:
  const DataConfig& config_;
  DataSplit split_;
  uint64_t seed_;
  const Vocabulary& vocabulary_;
};

std::unique_ptr<SampleSource> open_weighted(const SplitOpener& opener, const Blend& blend,
                                            int64_t num_samples, const std::string& cache) {
  check_usage(num_samples >= 0, "a weighted blend needs a number of samples");
  const std::vector<double> weights = normalize_weights(blend.weights);
  std::vector<std::unique_ptr<SplitDataset>> datasets;
  int64_t size = 0;
  for (size_t d = 0; d < weights.size(); ++d) {
    const double share = std::ceil(static_cast<double>(num_samples) * weights[d]);
    size += static_cast<int64_t>(share);
    const auto request = static_cast<int64_t>(std::ceil(share * (1.0 + kSurplus)));
    datasets.push_back(opener.open(blend.prefixes[d], request));
  }
  return std::make_unique<BlendedDataset>(std::move(datasets), weights, size, cache);
}

std::unique_ptr<SampleSource> open_by_size(const SplitOpener& opener, const Blend& blend,
                                           int64_t num_samples, const std::string& cache) {
  std::vector<std::unique_ptr<SplitDataset>> datasets;
  std::vector<double> sizes;
  int64_t total = 0;
  for (const std::string& prefix : blend.prefixes) {
    datasets.push_back(opener.open(prefix, -1));
    sizes.push_back(static_cast<double>(datasets.back()->num_samples()));
    total += datasets.back()->num_samples();
  }
  check_usage(num_samples <= total, "the datasets hold ", total, " samples, fewer than the ",
              num_samples, " wanted; give weights (weight prefix ...) to read data repeatedly");
  return std::make_unique<BlendedDataset>(std::move(datasets), normalize_weights(sizes),
                                          num_samples < 0 ? total : num_samples, cache);
}

}  // namespace

Blend parse_blend(const std::vector<std::string>& words) {
  Blend blend;
  size_t numbers = 0;
  for (size_t i = 0; i < words.size(); i += 2) numbers += parse_number(words[i]).has_value();
  if (words.size() % 2 != 0 || numbers == 0) return {.prefixes = words, .weights = {}};
  check_usage(numbers == words.size() / 2,
              "data paths must be all prefixes, or weight prefix "
              "weight prefix ...; ",
              numbers, " of ", words.size() / 2, " weights are numbers");
  for (size_t i = 0; i < words.size(); i += 2) {
    blend.weights.push_back(*parse_number(words[i]));
    blend.prefixes.push_back(words[i + 1]);
  }
  return blend;
}

bool has_data(const DataConfig& config, DataSplit split) {
  if (config.mock_data) return true;
  return is_per_split(config) ? !words_of(config, split).empty() : !config.data_path.empty();
}

std::unique_ptr<SampleSource> make_sample_source(const DataConfig& config, DataSplit split,
                                                 int64_t num_samples, uint64_t seed,
                                                 const Vocabulary& vocabulary) {
  if (config.mock_data) {
    // A different seed per split, because evaluation must not see the training text.
    return std::make_unique<MockDataset>(num_samples, vocabulary.size, vocabulary.end_of_document,
                                         seed + 1'000'003 * static_cast<uint64_t>(split));
  }
  check_usage(config.data_path.empty() || !is_per_split(config),
              "give either --data-path or --train-data-path, --valid-data-path, --test-data-path");
  check_usage(has_data(config, split), "no data for ", enum_name(split), ": give --data-path, --",
              enum_name(split), "-data-path or --mock-data");
  const Blend blend =
      parse_blend(is_per_split(config) ? words_of(config, split) : config.data_path);
  const SplitOpener opener(config, split, seed, vocabulary);
  // Megatron ignores a single weight only in data given per split.
  if (blend.prefixes.size() == 1 && (blend.weights.empty() || is_per_split(config)))
    return opener.open(blend.prefixes[0], num_samples);
  const std::string cache =
      config.data_cache_path.empty() ? blend.prefixes[0] + "/cache" : config.data_cache_path;
  return blend.weights.empty() ? open_by_size(opener, blend, num_samples, cache)
                               : open_weighted(opener, blend, num_samples, cache);
}

}  // namespace phalanx
