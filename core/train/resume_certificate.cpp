// next_step.json and its comparison.
#include "core/train/resume_certificate.h"

#include <xxhash.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/checkpoint/agreement.h"
#include "core/checkpoint/checked_json.h"

namespace phalanx {
namespace {

using Json = nlohmann::ordered_json;  // to write, in the order of the fields
using Parsed = nlohmann::json;        // to read any text: an ordered object copies what is in it

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

std::string certificate_path(const std::string& checkpoint) {
  return checkpoint + "/next_step.json";
}

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

std::string certificate_json(const ResumeCertificate& certificate) {
  const Json json{{"iteration", certificate.iteration},
                  {"global_batch_size", certificate.global_batch_size},
                  {"batch_hash", fmt::format("{:016x}", certificate.batch_hash)},
                  {"lm_loss", fmt::format("{:a}", certificate.loss)},
                  {"lm_loss_decimal", fmt::format("{}", certificate.loss)},
                  {"grad_norm", fmt::format("{:a}", certificate.gradient_norm)},
                  {"grad_norm_decimal", fmt::format("{}", certificate.gradient_norm)},
                  {"setup", certificate.setup}};
  return with_checksum(json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
}

ResumeCertificate parse_certificate(const std::string& text, const std::string& path) {
  check(
      has_its_checksum(text), path,
      " is damaged: it is not what was written (its checksum is wrong); delete it to go on without "
      "a resume certificate");
  const Parsed json = Parsed::parse(text, nullptr, false);
  const auto is_text = [&](const char* key) { return json.contains(key) && json[key].is_string(); };
  const auto is_number = [&](const char* key) {
    return json.contains(key) && json[key].is_number_unsigned();
  };
  check(json.is_object() && is_number("iteration") && is_number("global_batch_size") &&
            is_text("batch_hash") && is_text("lm_loss") && is_text("grad_norm") && is_text("setup"),
        path, " is not a resume certificate; delete it to go on without one");
  return {.iteration = json["iteration"].get<int64_t>(),
          .global_batch_size = json["global_batch_size"].get<int64_t>(),
          .batch_hash = std::strtoull(json["batch_hash"].get<std::string>().c_str(), nullptr, 16),
          .loss = std::strtod(json["lm_loss"].get<std::string>().c_str(), nullptr),
          .gradient_norm = std::strtod(json["grad_norm"].get<std::string>().c_str(), nullptr),
          .setup = json["setup"].get<std::string>()};
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
