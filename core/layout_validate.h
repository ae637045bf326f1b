// Whether a model can be cut over a mesh: asked before anything is allocated.
#pragma once

#include <string>
#include <vector>

#include "core/config.h"

namespace phalanx {

/// Every reason why `config`'s model, sequences and batches cannot run in its parallel layout on
/// `world_size` ranks: one sentence each, with option, value and the nearest legal value. The sizes
/// of the mesh themselves are checked by validate(ParallelConfig).
std::vector<std::string> validate_layout(const RunConfig& config, int64_t world_size);

}  // namespace phalanx
