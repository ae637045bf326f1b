// The device of a run: --device to a backend, the same kind on every rank.
#pragma once

#include <memory>

#include "core/train/training_config.h"
#include "kernels/backend.h"
#include "launch/mpi_ranks.h"

namespace phalanx {

/// The device that `choice` means where `num_gpus` are at hand.
Device chosen_device(DeviceChoice choice, int num_gpus);

/// The backend of `training` on this rank, before any group is made. Collective over the ranks:
/// `auto` takes GPUs only if every rank has one. Rank 0 says which device and why. Throws
/// UsageError if the device, or what is asked of it, is not there.
std::unique_ptr<Backend> make_run_backend(const TrainingConfig& training, const Ranks& ranks);

}  // namespace phalanx
