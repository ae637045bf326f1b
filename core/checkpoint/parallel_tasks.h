// Numbered tasks on a few threads, for tools that read files.
#pragma once

#include <cstdint>
#include <functional>

namespace phalanx {

/// Calls `task` with 0 .. count - 1, each once, in ascending order of their starts, on `threads`
/// threads (0: one per core). After an exception no more tasks start, and it is thrown here.
void for_each_task(int64_t count, int threads, const std::function<void(int64_t)>& task);

}  // namespace phalanx
