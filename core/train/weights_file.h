// The final weights of a run in one HDF5 file, every tensor whole and under its own name.
#pragma once

#include <cstdint>
#include <string>

#include "parallel/distributed_optimizer.h"
#include "parallel/process_groups.h"

namespace phalanx {

/// Attributes of the file.
struct WeightsInfo {
  std::string config_ini;  // the run's configuration, as its config.ini
  int64_t step = 0;
  int64_t consumed_samples = 0;
  std::string tokenizer_hash;
};

/// Where the weights are.
struct WeightsSource {
  const ParameterStore& store;
  const DistributedOptimizer& optimizer;
  Backend& backend;
  ProcessGroups& groups;
};

/// Writes `path` under a temporary name and renames it. One dataset per parameter
/// ("layers.00.attention.q.weight") with its global shape, f32 (f64 of an f64 run). A bf16 run
/// writes its f32 masters, gathered from the data-parallel ranks one parameter at a time, so that
/// no second copy of the model exists. Collective over the world; rank 0 writes; tp and pp must
/// be 1.
void save_weights(const std::string& path, const WeightsInfo& info, const WeightsSource& source);

/// Reads every parameter of `store` (allocated) from `path`, converting to the compute dtype.
/// Throws an error that names all missing, unexpected and misshapen tensors, or a tokenizer other
/// than `tokenizer_hash` (empty: any).
WeightsInfo load_weights(const std::string& path, const std::string& tokenizer_hash,
                         ParameterStore& store, Backend& backend);

}  // namespace phalanx
