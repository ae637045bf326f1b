// The attributes of a file of weights, for those who write one and those who read it.
#pragma once

#include <cstdint>
#include <string>

#include "data/hdf5_file.h"

namespace phalanx {

/// Attributes of the file.
struct WeightsInfo {
  std::string config_ini;  // the run's configuration, as its config.ini
  int64_t step = 0;
  int64_t consumed_samples = 0;
  std::string tokenizer_hash;
};

/// Puts them on "/", with the format's name.
void write_weights_info(Hdf5File& file, const WeightsInfo& info);
/// Throws UsageError unless `file` (called `path` in messages) says that it holds weights.
WeightsInfo read_weights_info(const Hdf5File& file, const std::string& path);

}  // namespace phalanx
