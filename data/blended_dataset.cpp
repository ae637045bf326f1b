// Blends of several datasets, and synthetic data.
#include <fmt/format.h>

#include <algorithm>

#include "data/sample_source.h"
#include "kernels/base/flight_recorder.h"
#include "kernels/base/philox.h"

namespace phalanx {

BlendedDataset::BlendedDataset(std::vector<std::unique_ptr<SplitDataset>> datasets,
                               std::vector<double> weights, int64_t size,
                               const std::string& cache_folder)
    : datasets_(std::move(datasets)), weights_(std::move(weights)), size_(size) {
  std::string identity = fmt::format("blend {}", size_);
  for (size_t d = 0; d < datasets_.size(); ++d)
    identity += fmt::format(" {:a} {}", weights_[d], datasets_[d]->key());
  const std::string stem = fmt::format("{}/blend-{:016x}", cache_folder, hash_name(identity));
  const std::string dataset_file = stem + "-dataset_index.npy";
  const std::string sample_file = stem + "-dataset_sample_index.npy";
  const NpyShape shape{.rows = size_};
  if (!file_exists(dataset_file) || !file_exists(sample_file)) {
    const FlightRange building(flight_entry(FlightKind::file, "building", dataset_file));
    make_folders(cache_folder);
    NpyWriter dataset(dataset_file, NpyType::i16, shape);
    NpyWriter sample(sample_file, NpyType::i64, shape);
    fill_blending_index(dataset.values<int16_t>(), sample.values<int64_t>(), weights_);
    dataset.publish();
    sample.publish();
  }
  dataset_index_ = std::make_unique<NpyArray>(dataset_file, NpyType::i16, shape);
  sample_index_ = std::make_unique<NpyArray>(sample_file, NpyType::i64, shape);
  check_counts();
}

void BlendedDataset::check_counts() const {
  std::vector<int64_t> taken(datasets_.size(), 0);
  for (int64_t i = 0; i < size_; ++i) {
    flight_progress_of(static_cast<uint64_t>(i));
    const int64_t d = dataset_index_->at(i);
    check(d >= 0 && d < static_cast<int64_t>(taken.size()), "a blend's index names dataset ", d,
          " of ", taken.size());
    ++taken[static_cast<size_t>(d)];
  }
  for (size_t d = 0; d < taken.size(); ++d)
    check(taken[d] <= datasets_[d]->num_samples(), "the blend takes ", taken[d],
          " samples from dataset ", d, ", which has ", datasets_[d]->num_samples(), ": ",
          datasets_[d]->describe(0), "; lower its weight or the number of samples");
}

void BlendedDataset::read(int64_t sample, std::span<int32_t> out) const {
  const auto d = static_cast<size_t>(dataset_index_->at(sample));
  datasets_[d]->read(sample_index_->at(sample), out);
}

std::string BlendedDataset::describe(int64_t sample) const {
  const auto d = static_cast<size_t>(dataset_index_->at(sample));
  return datasets_[d]->describe(sample_index_->at(sample));
}

MockDataset::MockDataset(int64_t num_samples, int64_t vocab_size, int32_t end_of_document,
                         uint64_t seed)
    : num_samples_(num_samples),
      vocab_size_(vocab_size),
      end_of_document_(end_of_document),
      seed_(seed) {
  check_usage(vocab_size >= 2, "mock data needs a vocabulary of at least 2, not ", vocab_size);
}

void MockDataset::read(int64_t sample, std::span<int32_t> out) const {
  constexpr double kMeanDocument = 256.0;
  const Philox random(seed_, "mock data");
  const uint64_t base = static_cast<uint64_t>(sample) * 2 * out.size();
  int64_t next = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const bool starts = i == 0 || out[i - 1] == end_of_document_;
    if (starts) {
      next = static_cast<int64_t>(random.uniform(base + 2 * i) * static_cast<double>(vocab_size_));
    } else if (random.uniform(base + 2 * i + 1) * kMeanDocument < 1.0) {
      next = end_of_document_;
    }
    if (starts && next == end_of_document_) ++next;  // no empty documents
    out[i] = static_cast<int32_t>(next % vocab_size_);
    next = out[i] + 1;
  }
}

std::string MockDataset::describe(int64_t sample) const {
  return fmt::format("sample {} of the mock data", sample);
}

}  // namespace phalanx
