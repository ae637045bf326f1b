// One split of one dataset: its index files and the walk from a sample's number to its tokens.
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "data/sample_source.h"
#include "kernels/base/flight_recorder.h"
#include "kernels/base/log.h"
#include "kernels/base/philox.h"

namespace phalanx {
namespace {

int64_t count_tokens(const IndexView& index, const SequenceRange& range) {
  int64_t tokens = 0;
  for (int64_t i = range.begin; i < range.end; ++i) {
    flight_progress_of(static_cast<uint64_t>(i));
    tokens += index.length(i);
  }
  return tokens;
}

uint64_t hash_lengths(const IndexView& index, const SequenceRange& range) {
  uint64_t hash = hash_name("sequence lengths");
  for (int64_t i = range.begin; i < range.end; ++i) {
    flight_progress_of(static_cast<uint64_t>(i));
    hash = (hash ^ static_cast<uint32_t>(index.length(i))) * 0x100000001b3ULL;
  }
  return hash;
}

EpochPlan plan_of(const IndexedDataset& data, const SampleOrder& order) {
  const int64_t tokens = count_tokens(data.index(), order.range);
  check(order.range.size() > 0, data.prefix(), " gives no sequence to the ", order.split,
        " split: it has ", data.index().num_sequences(),
        "; change --split, name data per split (--valid-data-path ...), or prepare more documents");
  check(tokens > order.seq_length, data.prefix(), ": the ", order.split, " split (sequences ",
        order.range.begin, " to ", order.range.end, ") has ", tokens, " tokens, one sample needs ",
        order.seq_length + 1, "; lower --seq-length or add data");
  return order.num_samples < 0 ? plan_one_epoch(tokens, order.seq_length)
                               : plan_epochs(tokens, order.seq_length, order.num_samples);
}

std::string base_name(const std::string& path) {
  return path.substr(path.find_last_of('/') + 1);
}

}  // namespace

SplitDataset::SplitDataset(std::shared_ptr<const IndexedDataset> data, const SampleOrder& order)
    : data_(std::move(data)), order_(order), plan_(plan_of(*data_, order_)) {
  if (order_.cache_folder.empty()) order_.cache_folder = data_->prefix() + "/cache";
  key_ = hash_name(fmt::format("{} {} {} {} {} {} {}", hash_lengths(data_->index(), order_.range),
                               order_.range.begin, order_.range.end, order_.seq_length,
                               plan_.epochs, plan_.separate_last, order_.seed));
  const Files files = file_names();
  if (!file_exists(files.document) || !file_exists(files.sample) || !file_exists(files.shuffle))
    build(files);
  document_index_ = std::make_unique<NpyArray>(files.document, NpyType::i32, document_shape());
  sample_index_ = std::make_unique<NpyArray>(files.sample, sample_type(), sample_shape());
  shuffle_index_ = std::make_unique<NpyArray>(files.shuffle, shuffle_type(), shuffle_shape());
}

SplitDataset::Files SplitDataset::file_names() const {
  const std::string stem = fmt::format("{}/{}-{}-{:016x}", order_.cache_folder,
                                       base_name(data_->prefix()), order_.split, key_);
  return {stem + "-document_index.npy", stem + "-sample_index.npy", stem + "-shuffle_index.npy"};
}

NpyType SplitDataset::sample_type() const {  // Megatron's choice
  return document_shape().numel() > std::numeric_limits<int32_t>::max() ? NpyType::i64
                                                                        : NpyType::i32;
}

NpyType SplitDataset::shuffle_type() const {
  return plan_.num_samples >= std::numeric_limits<uint32_t>::max() - 1 ? NpyType::i64
                                                                       : NpyType::u32;
}

/// All three at once, because one random stream shuffles documents first and samples later.
void SplitDataset::build(const Files& files) const {
  const FlightRange building(flight_entry(FlightKind::file, "building", files.document));
  make_folders(order_.cache_folder);
  NumpyRandom random(order_.seed);
  NpyWriter document(files.document, NpyType::i32, document_shape());
  NpyWriter sample(files.sample, sample_type(), sample_shape());
  NpyWriter shuffle(files.shuffle, shuffle_type(), shuffle_shape());

  fill_document_index(document.values<int32_t>(), order_.range, plan_, random);
  const auto fill_samples = [&]<class T>(std::span<T> out) {
    fill_sample_index(out, std::span<const int32_t>(document.values<int32_t>()), order_.seq_length,
                      [&](int64_t i) -> int64_t { return data_->index().length(i); });
  };
  if (sample_type() == NpyType::i32) {
    fill_samples(sample.values<int32_t>());
  } else {
    fill_samples(sample.values<int64_t>());
  }
  if (shuffle_type() == NpyType::u32) {
    fill_shuffle_index(shuffle.values<uint32_t>(), plan_, random);
  } else {
    fill_shuffle_index(shuffle.values<int64_t>(), plan_, random);
  }
  document.publish();
  sample.publish();
  shuffle.publish();
}

void SplitDataset::read(int64_t sample, std::span<int32_t> out) const {
  check(static_cast<int64_t>(out.size()) == order_.seq_length + 1, "samples have ",
        order_.seq_length + 1, " tokens, not ", out.size());
  const int64_t start = shuffle_index_->at(sample);
  int64_t position = sample_index_->at(2 * start);
  int64_t offset = sample_index_->at(2 * start + 1);
  for (size_t done = 0; done < out.size(); ++position, offset = 0) {
    const int64_t sequence = document_index_->at(position);
    check(sequence >= order_.range.begin && sequence < order_.range.end, data_->prefix(),
          ": the index of sample ", sample, " names sequence ", sequence, "; delete ",
          order_.cache_folder);
    const int64_t left = data_->index().length(sequence) - offset;
    const auto count = std::min(static_cast<size_t>(std::max<int64_t>(left, 0)), out.size() - done);
    data_->read(sequence, offset, out.subspan(done, count));
    done += count;
  }
}

std::string SplitDataset::describe(int64_t sample) const {
  return fmt::format("sample {} of {} ({})", sample, data_->prefix(), order_.split);
}

}  // namespace phalanx
