// cp.async.bulk.tensor: copies by the tensor memory accelerator (TMA) into shared memory. A copy
// spoils its target when it starts, the earliest moment at which bytes may arrive, and brings the
// bytes as late as the scheduler likes: reading without waiting, and starting before others have
// read, both show.
#pragma once

#include <cstdint>
#include <span>

#include "tests/cuda_emulator/include/cuda.h"
#include "tests/cuda_emulator/scheduler.h"

namespace phalanx::emulator {

/// Starts the copy of the box at `coordinates` (innermost first) to `shared`; its bytes are counted
/// by `barrier`. Ends the kernel on misuse.
void start_tensor_load(void* shared, const CUtensorMap& map, std::span<const int32_t> coordinates,
                       uint64_t* barrier, const Site& site);

/// Ends the kernel unless `map` is one.
void check_tensor_map(const CUtensorMap& map, const Site& site);

}  // namespace phalanx::emulator
