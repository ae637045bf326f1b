// Attributes of "/" in a file of weights.
#include "core/checkpoint/weights_info.h"

#include "core/checkpoint/save_names.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr char kFormat[] = "phalanx weights";

int64_t number_of(const Hdf5File& file, const char* attribute, const std::string& path) {
  const std::string text = file.attribute("/", attribute);
  const auto number = parse_number(text);
  check_usage(number.has_value(), path, ": its attribute ", attribute, " is '", text,
              "' instead of a number; the file is damaged");
  return *number;
}

}  // namespace

void write_weights_info(Hdf5File& file, const WeightsInfo& info) {
  file.set_attribute("/", "format", kFormat);
  file.set_attribute("/", "config", info.config_ini);
  file.set_attribute("/", "step", std::to_string(info.step));
  file.set_attribute("/", "consumed_samples", std::to_string(info.consumed_samples));
  file.set_attribute("/", "tokenizer_hash", info.tokenizer_hash);
}

WeightsInfo read_weights_info(const Hdf5File& file, const std::string& path) {
  check_usage(file.has_attribute("/", "format") && file.attribute("/", "format") == kFormat, path,
              " is an HDF5 file but not weights of this program");
  return {.config_ini = file.attribute("/", "config"),
          .step = number_of(file, "step", path),
          .consumed_samples = number_of(file, "consumed_samples", path),
          .tokenizer_hash = file.attribute("/", "tokenizer_hash")};
}

}  // namespace phalanx
