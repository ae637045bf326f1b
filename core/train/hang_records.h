// Reading the flight records of all ranks within bounded time.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/train/hang_times.h"
#include "core/train/hang_waits.h"

namespace phalanx {

/// By rank. If somebody's heartbeat is old, all are read again after `times.proof`: whose has not
/// changed does not answer. (Unless something went on elsewhere, and it is no hang anyway.) `alive`
/// is called every now and then meanwhile. What the file system does not give within
/// `times.patience` is unread.
std::vector<RankState> read_rank_states(const std::string& run_dir, int64_t world_size,
                                        const HangTimes& times, const std::function<void()>& alive);

/// For how long it may still be no hang, because something went on in a rank that answers.
/// Negative or zero: it is one.
std::chrono::nanoseconds time_left(const std::vector<RankState>& ranks,
                                   std::chrono::nanoseconds timeout);

}  // namespace phalanx
