// The text of next_step.json, apart from the rest because it needs nothing of the trainer.
#include <fmt/format.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "core/checkpoint/checked_json.h"
#include "core/train/resume_certificate.h"

namespace phalanx {
namespace {

using Json = nlohmann::ordered_json;  // to write, in the order of the fields
using Parsed = nlohmann::json;        // to read any text: an ordered object copies what is in it

}  // namespace

std::string certificate_path(const std::string& checkpoint) {
  return checkpoint + "/next_step.json";
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
    return json.contains(key) && json[key].is_number_unsigned() &&
           json[key].get<uint64_t>() <= INT64_MAX;
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

}  // namespace phalanx
