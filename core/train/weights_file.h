// The final weights of a run in one HDF5 file, every tensor whole and under its own name, written
// and read by ranks that hold pieces of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/checkpoint/weights_info.h"
#include "parallel/distributed_optimizer.h"
#include "parallel/process_group.h"

namespace phalanx {

/// Where a rank's share of the weights is.
struct WeightsSource {
  const ParameterStore& store;         // says the dtype
  std::vector<OptimizerShard> shards;  // of all ranks together: every element at least once
  Backend& backend;
  ProcessGroup& world;
};

/// Writes `path` under a temporary name and renames it. One dataset per parameter
/// ("layers.00.attention.q.weight"), sorted by name, with its global shape, f32 (f64 of an f64
/// run); a bf16 run writes its f32 masters. Collective over the world, on any mesh: rank 0 fetches
/// and writes one block of at most 64 MiB after the other, so that no rank holds more than its own
/// share. The file is the same, byte for byte, whatever the mesh. Throws, on every rank, if no rank
/// holds some part of a tensor.
void save_weights(const std::string& path, const WeightsInfo& info, const WeightsSource& source);

/// Reads this rank's piece of every parameter of `store` (allocated) from `path`, converting to the
/// compute dtype. Collective over `world`, all of whose ranks read the same file. Throws, on every
/// rank, an error that names all tensors that are missing, misshapen, or of no rank's model, or a
/// tokenizer other than `tokenizer_hash` (empty: any).
WeightsInfo load_weights(const std::string& path, const std::string& tokenizer_hash,
                         ParameterStore& store, Backend& backend, ProcessGroup& world);

}  // namespace phalanx
