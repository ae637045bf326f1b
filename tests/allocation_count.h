// How often a test program has called operator new. Linking this replaces the global operators.
#pragma once

#include <cstdint>

namespace phalanx {

/// Over all threads.
int64_t count_allocations();
/// By the calling thread.
int64_t count_allocations_of_this_thread();
/// Bytes that all threads have asked for so far.
int64_t count_allocated_bytes();

}  // namespace phalanx
