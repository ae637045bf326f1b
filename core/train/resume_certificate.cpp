// What a step did, and its comparison with a certificate.
#include "core/train/resume_certificate.h"

#include <fmt/format.h>

#include <xxhash.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "core/checkpoint/agreement.h"

namespace phalanx {
namespace {

uint64_t sample_hash(const MicroBatch& micro_batch, int64_t column, uint64_t sample,
                     std::vector<int32_t>& scratch) {
  const auto sequences = static_cast<size_t>(micro_batch.sequences);
  scratch.clear();
  for (const auto* ids : {&micro_batch.tokens, &micro_batch.targets})
    for (size_t at = static_cast<size_t>(column); at < ids->size(); at += sequences)
      scratch.push_back((*ids)[at]);
  return XXH3_64bits_withSeed(scratch.data(), scratch.size() * sizeof(int32_t), sample);
}

/// Infinite between a number and none; 0 between two that are none, because a skipped step may be
/// repeated as such.
double relative_difference(double a, double b) {
  if (a == b || (std::isnan(a) && std::isnan(b))) return 0.0;
  if (!std::isfinite(a) || !std::isfinite(b)) return std::numeric_limits<double>::infinity();
  return std::abs(a - b) / std::max(std::abs(a), std::abs(b));
}

}  // namespace

uint64_t batch_hash(const GlobalBatch& batch, ProcessGroup& dp) {
  std::vector<uint64_t> sum(1);
  std::vector<int32_t> scratch;
  for (size_t m = 0; m < batch.micro_batches.size(); ++m) {
    const MicroBatch& micro_batch = batch.micro_batches[m];
    const int64_t group = static_cast<int64_t>(m) * dp.size() + dp.rank();
    const int64_t first = batch.first_sample + group * micro_batch.sequences;
    for (int64_t b = 0; b < micro_batch.sequences; ++b)
      sum[0] += sample_hash(micro_batch, b, static_cast<uint64_t>(first + b), scratch);
  }
  sum_digests(dp, sum);
  return sum[0];
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (const auto colon = line.find(": "); line.starts_with("model name") && colon != line.npos)
      return line.substr(colon + 2);
  return "unknown processor";
}

CertificateCheck check_certificate(const ResumeCertificate& expected,
                                   const ResumeCertificate& found, double tolerance) {
  if (expected.global_batch_size != found.global_batch_size)
    return {true, fmt::format("resume not verified: the global batch has {} samples instead of {}",
                              found.global_batch_size, expected.global_batch_size)};
  if (expected.batch_hash != found.batch_hash)
    return {false,
            fmt::format("the data of step {} has hash {:016x}, expected {:016x}: data files, "
                        "tokenizer or data options are not those of the checkpoint",
                        found.iteration, found.batch_hash, expected.batch_hash)};
  const bool same_setup = expected.setup == found.setup;
  const double worst = std::max(relative_difference(expected.loss, found.loss),
                                relative_difference(expected.gradient_norm, found.gradient_norm));
  const std::string numbers =
      fmt::format("step {}: loss {} (expected {}), gradient norm {} (expected {})", found.iteration,
                  found.loss, expected.loss, found.gradient_norm, expected.gradient_norm);
  const bool same = worst <= (same_setup ? 0.0 : tolerance);
  if (!same)
    return {false,
            fmt::format("{}; the {} differ{}", numbers,
                        same_setup ? "bits" : "relative difference and its limit",
                        same_setup ? "" : fmt::format(": {:.3g} and {:.3g}", worst, tolerance))};
  return {true, fmt::format("resume verified, {}: {}",
                            same_setup ? "bit for bit"
                                       : fmt::format("relative difference {:.3g} of {:.3g} allowed "
                                                     "in another setup",
                                                     worst, tolerance),
                            numbers)};
}

double certificate_tolerance(const ModelConfig& model, DType dtype) {
  const auto layers = static_cast<double>(model.num_layers);
  const double sums = dtype_epsilon(accumulator_dtype(dtype)) *
                      std::sqrt(layers * static_cast<double>(model.hidden_size));
  const double rounding = dtype == DType::bf16 ? dtype_epsilon(dtype) * std::sqrt(2 * layers) : 0;
  return sums + rounding;
}

}  // namespace phalanx
