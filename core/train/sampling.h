// Choosing the next token from logits: greedy, temperature, top-k, top-p. And the cut between what
// may be shown and what is only half a character.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace phalanx {

struct SamplingOptions {
  double temperature = 1.0;  // 0: greedy
  int64_t top_k = 0;         // 0: all
  double top_p = 1.0;        // 1: all
};

/// Throws UsageError that lists everything out of range.
void check_sampling(const SamplingOptions& options);

/// A token and its share of the probability that is left after the cuts.
struct Candidate {
  int32_t token;
  double probability;
};

/// The tokens that may be drawn, most probable first (ties: lower id first), probabilities summing
/// to 1: softmax(logits / temperature), cut to the top_k most probable, then to the smallest set
/// whose probability reaches top_p (Holtzman et al. 2020). Throws if a logit is NaN.
std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options);

/// The candidate whose interval of the cumulative probability holds `uniform` in (0, 1).
int32_t choose_token(std::span<const float> logits, const SamplingOptions& options, double uniform);

/// Length of the longest prefix of `bytes` that does not end inside a UTF-8 character. Bytes that
/// can never become a character count as complete.
size_t complete_utf8_prefix(std::string_view bytes);

}  // namespace phalanx
