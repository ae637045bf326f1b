// Shared memory of the block that a host thread runs: one dynamic buffer, and the `__shared__`
// variables of the program. Both are filled with 0xff (NaN, -1) before each block, because on a GPU
// they hold what the block before left there.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tests/cuda_emulator/scheduler.h"

namespace phalanx::emulator {

inline constexpr size_t kSharedBytesByDefault = 48 << 10;
inline constexpr size_t kSharedBytesAtMost = 227 << 10;
/// Where the dynamic buffer starts in the shared window; its alignment.
inline constexpr uint32_t kSharedWindowStart = 1024;

/// Makes the buffer `bytes` long for the next block and poisons it and the static variables.
void prepare_shared_memory(size_t bytes);
/// Checks after a block that nobody wrote behind the buffer. Throws KernelError.
void check_shared_memory();

/// The dynamic buffer of the running block; ends the kernel if it was launched without.
void* dynamic_shared_base(const Site& site);
/// Its address in the shared window, and back. End the kernel for what lies outside of the buffer
/// (`bytes` from there must be inside).
uint32_t shared_window_address(const void* pointer, const Site& site);
void* shared_window_pointer(uint32_t address, size_t bytes, const Site& site);
/// Ends the kernel unless `bytes` at `pointer` are aligned to `alignment` and in shared memory
/// (dynamic, or a `__shared__` variable).
void check_shared(const void* pointer, size_t bytes, size_t alignment, const Site& site);

}  // namespace phalanx::emulator
