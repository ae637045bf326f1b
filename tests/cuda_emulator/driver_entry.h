// Functions of the driver that cudaGetDriverEntryPointByVersion finds by name.
#pragma once

namespace phalanx::emulator {
/// Makes `function` known; the result is true, so that a global's initialiser can call it.
bool register_driver_entry(const char* name, void* function);
}  // namespace phalanx::emulator
