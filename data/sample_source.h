// Where training samples come from: one dataset's split, a weighted blend of several, or synthetic
// text. A sample is seq_length + 1 consecutive tokens; its number fixes its content.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/data_order.h"
#include "data/indexed_dataset.h"
#include "data/npy_file.h"

namespace phalanx {

/// Samples by number. Reading is thread-safe and does not allocate.
class SampleSource {
 public:
  virtual ~SampleSource() = default;
  virtual int64_t num_samples() const = 0;
  /// Tokens of `sample` into `out` [seq_length + 1].
  virtual void read(int64_t sample, std::span<int32_t> out) const = 0;
  /// Where `sample` comes from, for messages.
  virtual std::string describe(int64_t sample) const = 0;
};

/// What defines the order of one dataset's samples.
struct SampleOrder {
  SequenceRange range = {};
  std::string split = {};  // for file names only
  int64_t seq_length = 0;
  int64_t num_samples = -1;  // at least so many; negative: one pass over the data
  uint64_t seed = 0;
  std::string cache_folder = {};  // empty: PREFIX/cache
};

/// One split of one dataset in Megatron's order. The indices are files in the cache folder, named
/// by a hash of what defines them; whoever finds them missing builds them under temporary names and
/// renames, so ranks and nodes may race.
class SplitDataset : public SampleSource {
 public:
  SplitDataset(std::shared_ptr<const IndexedDataset> data, const SampleOrder& order);

  int64_t num_samples() const override { return plan_.num_samples; }
  void read(int64_t sample, std::span<int32_t> out) const override;
  std::string describe(int64_t sample) const override;
  /// Hash of all that defines the order.
  uint64_t key() const { return key_; }

 private:
  struct Files {
    std::string document, sample, shuffle;
  };
  Files file_names() const;
  NpyType sample_type() const;
  NpyType shuffle_type() const;
  NpyShape document_shape() const { return {.rows = plan_.epochs * order_.range.size()}; }
  NpyShape sample_shape() const { return {.rows = plan_.num_samples + 1, .columns = 2}; }
  NpyShape shuffle_shape() const { return {.rows = plan_.num_samples}; }
  void build(const Files& files) const;

  std::shared_ptr<const IndexedDataset> data_;
  SampleOrder order_;
  EpochPlan plan_;
  uint64_t key_;
  std::unique_ptr<NpyArray> document_index_;
  std::unique_ptr<NpyArray> sample_index_;
  std::unique_ptr<NpyArray> shuffle_index_;
};

/// Samples of several datasets, mixed by weights (normalised); see fill_blending_index.
class BlendedDataset : public SampleSource {
 public:
  /// `size` samples. Throws when a dataset would have to give more than it has.
  BlendedDataset(std::vector<std::unique_ptr<SplitDataset>> datasets, std::vector<double> weights,
                 int64_t size, const std::string& cache_folder);

  int64_t num_samples() const override { return size_; }
  void read(int64_t sample, std::span<int32_t> out) const override;
  std::string describe(int64_t sample) const override;

 private:
  void check_counts() const;
  std::vector<std::unique_ptr<SplitDataset>> datasets_;
  std::vector<double> weights_;
  int64_t size_;
  std::unique_ptr<NpyArray> dataset_index_;
  std::unique_ptr<NpyArray> sample_index_;
};

/// Synthetic documents that count upwards from a random id, for runs without files: easy to learn,
/// a pure function of (seed, sample, position).
class MockDataset : public SampleSource {
 public:
  MockDataset(int64_t num_samples, int64_t vocab_size, int32_t end_of_document, uint64_t seed);

  int64_t num_samples() const override { return num_samples_; }
  void read(int64_t sample, std::span<int32_t> out) const override;
  std::string describe(int64_t sample) const override;

 private:
  int64_t num_samples_;
  int64_t vocab_size_;
  int32_t end_of_document_;
  uint64_t seed_;
};

}  // namespace phalanx
