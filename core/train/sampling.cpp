// Next-token choice and UTF-8 boundaries.
#include "core/train/sampling.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

/// Ids of the `count` largest logits, largest first; ties go to the lower id.
std::vector<int32_t> largest(std::span<const float> logits, size_t count) {
  std::vector<int32_t> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  const auto before = [&](int32_t a, int32_t b) {
    const float left = logits[static_cast<size_t>(a)];
    const float right = logits[static_cast<size_t>(b)];
    return left != right ? left > right : a < b;
  };
  const auto middle = order.begin() + static_cast<std::ptrdiff_t>(count);
  std::partial_sort(order.begin(), middle, order.end(), before);
  order.resize(count);
  return order;
}

void normalize(std::vector<Candidate>& list) {
  double sum = 0;
  for (const Candidate& candidate : list) sum += candidate.probability;
  for (Candidate& candidate : list) candidate.probability /= sum;
}

/// Bytes of the character that starts with `lead`; 1 for bytes that start none.
size_t utf8_length(unsigned char lead) {
  if (lead >= 0xF0 && lead <= 0xF4) return 4;
  if (lead >= 0xE0) return lead <= 0xEF ? 3 : 1;
  return lead >= 0xC2 ? 2 : 1;
}

}  // namespace

void check_sampling(const SamplingOptions& options) {
  std::string problems;
  if (!(options.temperature >= 0) || std::isinf(options.temperature))
    problems += fmt::format("temperature {} must be 0 (greedy) or more\n", options.temperature);
  if (options.top_k < 0)
    problems += fmt::format("top-k {} must be 0 (all) or more\n", options.top_k);
  if (!(options.top_p > 0 && options.top_p <= 1))
    problems += fmt::format("top-p {} must be above 0 and at most 1\n", options.top_p);
  if (!problems.empty()) problems.pop_back();
  check_usage(problems.empty(), problems);
}

std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options) {
  check(!logits.empty(), "there are no logits to choose from");
  for (size_t i = 0; i < logits.size(); ++i)
    check(!std::isnan(logits[i]), "the logit of token ", i, " is NaN; are the weights damaged?");
  if (options.temperature == 0) return {{largest(logits, 1)[0], 1.0}};

  const size_t keep = options.top_k > 0
                          ? std::min(logits.size(), static_cast<size_t>(options.top_k))
                          : logits.size();
  std::vector<Candidate> list;
  list.reserve(keep);
  double maximum = 0;
  for (const int32_t token : largest(logits, keep)) {
    const double logit = logits[static_cast<size_t>(token)];
    if (list.empty()) maximum = logit;  // the first is the largest: exp never overflows
    list.push_back({token, std::exp((logit - maximum) / options.temperature)});
  }
  normalize(list);
  if (options.top_p >= 1) return list;
  double sum = 0;
  size_t count = 0;
  while (count < list.size() && sum < options.top_p) sum += list[count++].probability;
  list.resize(count);
  normalize(list);
  return list;
}

int32_t choose_token(std::span<const float> logits, const SamplingOptions& options,
                     double uniform) {
  const std::vector<Candidate> list = candidates(logits, options);
  double sum = 0;
  for (const Candidate& candidate : list) {
    sum += candidate.probability;
    if (uniform < sum) return candidate.token;
  }
  return list.back().token;  // rounding left the sum a hair below 1
}

size_t complete_utf8_prefix(std::string_view bytes) {
  // Only the last three bytes can belong to an unfinished character.
  for (size_t back = 1; back <= std::min<size_t>(3, bytes.size()); ++back) {
    const auto byte = static_cast<unsigned char>(bytes[bytes.size() - back]);
    if (byte >= 0x80 && byte < 0xC0) continue;  // a continuation: look for its lead
    return utf8_length(byte) > back ? bytes.size() - back : bytes.size();
  }
  return bytes.size();
}

}  // namespace phalanx
