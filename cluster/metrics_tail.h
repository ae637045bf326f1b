// The newest records of metrics.jsonl: a long run has more of them than anyone wants in memory.
#pragma once

#include <cstdint>
#include <string>

#include "cluster/record_values.h"

namespace phalanx {

/// The whole records within the last `bytes` of the file. Empty if it is not there.
Records read_last_records(const std::string& path, int64_t bytes);

/// All records of the file without most of what has nothing to do with time: losses, rates, and the
/// bytes and calls of groups.
Records read_step_records(const std::string& path);

/// The highest number behind "iteration" in any line; 0 if there is none. One pass, a line at a
/// time.
int64_t highest_iteration(const std::string& path);

}  // namespace phalanx
