// The one flag a signal handler sets to end a run at the next step boundary.
#pragma once

#include <atomic>

namespace phalanx {
namespace detail {
// A lock-free atomic because that is all a signal handler may touch. Read by the training loop
// only, never by a layer, a kernel or a collective.
inline constinit std::atomic<bool> stop_flag{false};
static_assert(std::atomic<bool>::is_always_lock_free);
}  // namespace detail

/// Set it to true to end the run after the current step: weights are written, all ranks stop
/// alike.
inline std::atomic<bool>& stop_requested() {
  return detail::stop_flag;
}

}  // namespace phalanx
