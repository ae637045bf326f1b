// Memory of a layout without running it, and which options bring a run into the memory there is.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "core/config.h"
#include "core/train/memory_check.h"
#include "parallel/device_mesh.h"

namespace phalanx {

/// What the pipeline rank that needs most needs, and which that is: measured by one step of the
/// real layers that computes nothing. `config` has its vocabulary. Without a global batch size: as
/// many micro-batches as fill the pipeline.
std::pair<MemoryNeeds, int64_t> measure_memory(const RunConfig& config, int64_t world_size,
                                               Device device);

/// Micro-batches of one rank and step.
int64_t num_micro_batches(const RunConfig& config, const DeviceMesh& mesh);

/// The options nearest to `config` with which every rank stays within `room`: each was measured. In
/// words, for a person who has read why the run does not fit. First single options on the same
/// ranks, then several together, then more ranks.
std::string options_that_fit(const RunConfig& config, int64_t world_size, Device device,
                             const MemoryRoom& room);

}  // namespace phalanx
