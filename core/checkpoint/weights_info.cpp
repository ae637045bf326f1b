// Attributes of "/" in a file of weights.
#include "core/checkpoint/weights_info.h"

#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr char kFormat[] = "phalanx weights";

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
          .step = std::stoll(file.attribute("/", "step")),
          .consumed_samples = std::stoll(file.attribute("/", "consumed_samples")),
          .tokenizer_hash = file.attribute("/", "tokenizer_hash")};
}

}  // namespace phalanx
