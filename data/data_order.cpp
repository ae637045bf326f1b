// Split arithmetic, epochs, document order and blending.
#include "data/data_order.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace phalanx {
namespace {

/// NumPy's summation of doubles: eight running sums up to 128 values, halves beyond.
double pairwise_sum(std::span<const double> values) {
  const size_t n = values.size();
  if (n < 8) {
    double sum = 0.0;
    for (const double value : values) sum += value;
    return sum;
  }
  if (n > 128) {
    const size_t half = n / 2 - n / 2 % 8;
    return pairwise_sum(values.first(half)) + pairwise_sum(values.subspan(half));
  }
  std::array<double, 8> part{};
  for (size_t i = 0; i + 8 <= n; i += 8)
    for (size_t j = 0; j < 8; ++j) part[j] = i == 0 ? values[j] : part[j] + values[i + j];
  double sum =
      ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
  for (size_t i = n - n % 8; i < n; ++i) sum += values[i];
  return sum;
}

std::array<double, 3> parse_split(std::string_view split) {
  std::array<double, 3> shares{};
  size_t count = 0;
  const std::string text(split);
  const char* at = text.c_str();
  for (;;) {
    char* end = nullptr;
    const double share = std::strtod(at, &end);
    check_usage(end != at && (*end == ',' || *end == '\0') && count < 3, "split \"", split,
                "\" is not of the form 949,50,1: up to three shares for train, valid, test");
    shares[count++] = share;
    if (*end == '\0') return shares;
    at = end + 1;
  }
}

void fill_epochs(std::span<int32_t> out, const SequenceRange& range, NumpyRandom& random) {
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<int32_t>(range.begin + static_cast<int64_t>(i) % range.size());
  random.shuffle(out);
}

}  // namespace

std::vector<double> normalize_weights(std::span<const double> weights) {
  for (const double weight : weights)
    check_usage(std::isfinite(weight) && weight >= 0, "weight ", weight,
                " must be a number of at least 0");
  const double sum = pairwise_sum(weights);
  check_usage(sum > 0 && std::isfinite(sum), "weights must not sum to ", sum);
  std::vector<double> shares(weights.begin(), weights.end());
  for (double& share : shares) share /= sum;
  return shares;
}

std::array<SequenceRange, 3> split_sequences(std::string_view split, int64_t num_sequences) {
  const auto shares = normalize_weights(parse_split(split));
  std::array<SequenceRange, 3> ranges;
  double before = 0.0;
  const auto boundary = [&](double share) {
    // nearbyint rounds half to even, as Python's round.
    const auto at =
        static_cast<int64_t>(std::nearbyint(share * static_cast<double>(num_sequences)));
    return std::min(at, num_sequences);  // the shares may sum to a hair above 1
  };
  for (size_t i = 0; i < 3; ++i) {
    const double after = before + shares[i];
    ranges[i] = {boundary(before), boundary(after)};
    before = after;
  }
  return ranges;
}

EpochPlan plan_one_epoch(int64_t tokens_per_epoch, int64_t seq_length) {
  check(seq_length >= 1, "seq-length ", seq_length, " must be at least 1");
  check(tokens_per_epoch > seq_length, tokens_per_epoch, " tokens are too few for one sample of ",
        seq_length, " + 1; lower --seq-length or add data");
  return {.num_samples = (tokens_per_epoch - 1) / seq_length};
}

EpochPlan plan_epochs(int64_t tokens_per_epoch, int64_t seq_length, int64_t requested) {
  EpochPlan plan = plan_one_epoch(tokens_per_epoch, seq_length);
  const int64_t samples_per_epoch = plan.num_samples;
  check(requested >= 0 &&
            requested <= (std::numeric_limits<int64_t>::max() / 2 - tokens_per_epoch) / seq_length,
        requested, " samples of ", seq_length, " tokens are more than 64 bits can count");
  const int64_t wanted = requested * seq_length + 1;
  plan.epochs = std::max<int64_t>(1, (wanted + tokens_per_epoch - 1) / tokens_per_epoch);
  plan.num_samples = (plan.epochs * tokens_per_epoch - 1) / seq_length;
  if (plan.epochs == 1) return plan;

  plan.samples_before_last = ((plan.epochs - 1) * tokens_per_epoch - 1) / seq_length;
  constexpr double kThreshold = 0.80;  // Megatron's
  const auto enough = static_cast<int64_t>(kThreshold * static_cast<double>(samples_per_epoch));
  plan.separate_last = requested - plan.samples_before_last < enough;
  return plan;
}

void fill_document_index(std::span<int32_t> out, const SequenceRange& range, const EpochPlan& plan,
                         NumpyRandom& random) {
  check(range.size() > 0 && range.end <= std::numeric_limits<int32_t>::max(),
        "cannot order the sequences ", range.begin, " to ", range.end);
  check(static_cast<int64_t>(out.size()) == plan.epochs * range.size(), "document index of ",
        out.size(), " for ", plan.epochs, " epochs of ", range.size());
  if (!plan.separate_last) return fill_epochs(out, range, random);
  const auto last = static_cast<size_t>(range.size());
  fill_epochs(out.first(out.size() - last), range, random);
  fill_epochs(out.last(last), range, random);
}

void fill_blending_index(std::span<int16_t> dataset, std::span<int64_t> sample,
                         std::span<const double> weights) {
  check_usage(!weights.empty() && weights.size() <= std::numeric_limits<int16_t>::max(),
              "a blend of ", weights.size(), " datasets; 1 to 32767 are possible");
  std::vector<int64_t> taken(weights.size(), 0);
  for (size_t k = 0; k < dataset.size(); ++k) {
    flight_progress_of(k);
    const double progress = std::max(static_cast<double>(k), 1.0);
    size_t best = 0;
    double best_error = -std::numeric_limits<double>::infinity();
    for (size_t d = 0; d < weights.size(); ++d) {
      // volatile, because a fused multiply-add would round once where Megatron rounds twice.
      const volatile double share = weights[d] * progress;
      const double error = share - static_cast<double>(taken[d]);
      if (error <= best_error) continue;
      best_error = error;
      best = d;
    }
    dataset[k] = static_cast<int16_t>(best);
    sample[k] = taken[best]++;
  }
}

}  // namespace phalanx
