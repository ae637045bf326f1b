// Compares what a run needs with what its machines and GPUs have, before any of it is taken.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/train/memory_needs.h"

namespace phalanx {

/// Bytes that each rank may take where all ranks that share a machine or a GPU take alike: of the
/// fullest machine, and of the fullest GPU (as much as the host's for ranks on the CPU).
struct MemoryRoom {
  int64_t device = 0;
  int64_t host = 0;
};

/// MemAvailable of /proc/meminfo text, in bytes; -1 if it is not there.
int64_t parse_available_memory(const std::string& meminfo);

/// Throws UsageError, on all ranks alike, if the ranks of any machine, or of any GPU, need more
/// than it has available: the text has the table of needs and what `advice` says to the room there
/// is. Collective over `world`.
void check_memory(const MemoryNeeds& needs, const DeviceInfo& device, ProcessGroup& world,
                  const std::function<std::string(const MemoryRoom&)>& advice);

}  // namespace phalanx
