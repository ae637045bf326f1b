// How often this program has called operator new, over all threads.
#pragma once

#include <cstdint>

namespace phalanx {
int64_t count_allocations();
}  // namespace phalanx
