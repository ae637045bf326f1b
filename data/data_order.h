// The order in which samples are read, equal to Megatron's to the last bit (GPTDataset and
// BlendedDataset of Megatron Core): split, epochs, document, sample and shuffle index, blending.
// Pure functions over arrays; sample_dataset.h stores and uses what they make. Counts are 64-bit
// and divided as integers (a 32-bit float division loses samples past 2^24 tokens).
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/numpy_random.h"
#include "kernels/base/enum_names.h"
#include "kernels/base/error.h"
#include "kernels/base/flight_recorder.h"

namespace phalanx {

enum class DataSplit : uint8_t { train, valid, test };

template <>
struct EnumNames<DataSplit> {
  static constexpr std::pair<DataSplit, std::string_view> table[] = {
      {DataSplit::train, "train"}, {DataSplit::valid, "valid"}, {DataSplit::test, "test"}};
};

/// Half-open range of sequences.
struct SequenceRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

/// Weights divided by their sum; the sum is NumPy's pairwise one, so that the quotients are too.
/// Throws UsageError unless all are finite, none negative and the sum positive.
std::vector<double> normalize_weights(std::span<const double> weights);

/// "949,50,1" over `num_sequences`: boundaries round(cumulative share * n), half to even.
std::array<SequenceRange, 3> split_sequences(std::string_view split, int64_t num_sequences);

/// How often the documents are walked for a number of samples.
struct EpochPlan {
  int64_t epochs = 1;
  bool separate_last = false;  // the last epoch is shuffled apart, because little of it is used
  int64_t num_samples = 0;     // all samples that `epochs` give
  int64_t samples_before_last = 0;  // samples of the epochs before the last, if that is apart
};

/// Plan for at least `requested` samples of `seq_length` + 1 tokens (neighbours share one token).
EpochPlan plan_epochs(int64_t tokens_per_epoch, int64_t seq_length, int64_t requested);
/// Plan for one pass.
EpochPlan plan_one_epoch(int64_t tokens_per_epoch, int64_t seq_length);

/// `out` [epochs * range.size()]: sequence numbers, shuffled.
void fill_document_index(std::span<int32_t> out, const SequenceRange& range, const EpochPlan& plan,
                         NumpyRandom& random);

/// `out` [num_samples]: a permutation of the samples; T is uint32_t or int64_t.
template <class T>
void fill_shuffle_index(std::span<T> out, const EpochPlan& plan, NumpyRandom& random) {
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<T>(i);
  if (!plan.separate_last) return random.shuffle(out);
  random.shuffle(out.first(static_cast<size_t>(plan.samples_before_last)));
  random.shuffle(out.subspan(static_cast<size_t>(plan.samples_before_last)));
}

/// `out` [num_samples + 1][2]: where each sample starts, as (position in `document_index`, token
/// offset there). A sample runs to the start of the next, inclusive. `length_of(sequence)` gives
/// tokens. T is int32_t or int64_t.
template <class T, class LengthOf>
void fill_sample_index(std::span<T> out, std::span<const int32_t> document_index,
                       int64_t seq_length, LengthOf&& length_of) {
  size_t position = 0;
  int64_t offset = 0;
  for (size_t i = 2; i < out.size(); i += 2) {  // the first sample starts at (0, 0)
    flight_progress_of(i);
    int64_t missing = seq_length;  // tokens from this start to the next one
    for (;;) {
      // The next start must be a token, not a document's end: a sample includes that token.
      const int64_t left = length_of(document_index[position]) - offset;
      if (missing < left) break;
      missing -= left;
      offset = 0;
      check(++position < document_index.size(), "the documents end before sample ", i / 2);
    }
    offset += missing;
    out[i] = static_cast<T>(position);
    out[i + 1] = static_cast<T>(offset);
  }
}

/// `dataset` and `sample` [size]: for each blended sample the dataset it is taken from, so that the
/// counts follow `weights` (normalised) as closely as can be at every prefix, and its number there.
void fill_blending_index(std::span<int16_t> dataset, std::span<int64_t> sample,
                         std::span<const double> weights);

}  // namespace phalanx
