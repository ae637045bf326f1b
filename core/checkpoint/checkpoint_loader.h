// Reading a checkpoint into a training system, whatever mesh wrote it and whatever mesh reads it.
#pragma once

#include <string>
#include <vector>

#include "core/checkpoint/io_watchdog.h"
#include "core/checkpoint/manifest.h"
#include "parallel/distributed_optimizer.h"

namespace phalanx {

/// A rank's part of the state, allocated. Borrowed.
struct LoadTarget {
  const ParameterStore& store;
  DistributedOptimizer& optimizer;
  GradientBuffer& gradients;
  Backend& backend;
  ProcessGroup& world;
};

/// Tensors by name that may be missing in the checkpoint, or in the model; "layers.03.*" for many.
struct LoadExceptions {
  std::vector<std::string> missing;
  std::vector<std::string> unexpected;
};

/// Begins the text of a CheckpointDamage where the system would not read a file (an I/O error, no
/// permission): another checkpoint may do, but this one may be whole another time.
inline constexpr char kUnreadable[] = "cannot be read now: ";

/// The manifest of FOLDER, on every rank. Rank 0 reads it for all: thousands of ranks would
/// otherwise ask for the same file at once. Collective. Throws CheckpointDamage, on every rank
/// alike.
Manifest share_manifest(const std::string& folder, ProcessGroup& world, IoWatchdog& watchdog);

/// The manifest of FOLDER, after a look at all of the checkpoint but its tensors: COMMITTED, the
/// manifest itself, index.h5, and of every shard its size and frame. Collective over `world`; each
/// file is read by one rank. Throws CheckpointDamage, on every rank alike.
Manifest open_checkpoint(const std::string& folder, ProcessGroup& world, IoWatchdog& watchdog);

/// Throws UsageError, on every rank alike, if the checkpoint is of another model: names all tensors
/// that are missing, unexpected or misshapen, and a dtype that is not the masters'. Collective;
/// reads nothing.
void check_model(const std::string& folder, const Manifest& manifest, const LoadTarget& target,
                 const LoadExceptions& exceptions, IoWatchdog& watchdog);

struct LoadReport {
  int64_t bytes_read = 0;  // of tensors, by this rank: those of its own masters and moments
  double seconds = 0;
  std::vector<std::string> missing;     // tensors that kept their values, by `exceptions`
  std::vector<std::string> unexpected;  // that were left out
};

/// Reads this rank's masters and moments straight into their place, every byte it needs once,
/// checks all tensors against their checksums, and gives every rank its weights. Collective. Throws
/// UsageError, on every rank alike, if the checkpoint is of another model (all tensors that are
/// missing, unexpected or misshapen are named), CheckpointDamage if its data is not what was
/// written (shard and tensor are named); the state is undefined then and another checkpoint may be
/// loaded.
LoadReport load_checkpoint(const std::string& folder, const Manifest& manifest,
                           const LoadTarget& target, const LoadExceptions& exceptions,
                           IoWatchdog& watchdog);

}  // namespace phalanx
