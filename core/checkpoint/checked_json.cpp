// The checksum as the last field of a JSON object.
#include "core/checkpoint/checked_json.h"

#include <fmt/format.h>

#include <xxhash.h>

#include <string_view>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr std::string_view kEnd = "\n}\n";
constexpr std::string_view kField = ",\n \"checksum\": ";

std::string field_of(const std::string& json) {
  return fmt::format("{}\"{:016x}\"{}", kField, XXH3_64bits(json.data(), json.size()), kEnd);
}

}  // namespace

std::string with_checksum(const std::string& json) {
  check(json.ends_with(kEnd), "only an object over several lines can be given a checksum");
  return json.substr(0, json.size() - kEnd.size()) + field_of(json);
}

bool has_its_checksum(const std::string& text) {
  const size_t place = text.rfind(kField);
  if (place == std::string::npos) return false;
  const std::string json = text.substr(0, place) + std::string(kEnd);
  return text.substr(place) == field_of(json);
}

}  // namespace phalanx
