// TrainCounters: how far a run has come.
#pragma once

#include <cstdint>

namespace phalanx {

/// Counts of the run so far; the same on every rank.
struct TrainCounters {
  int64_t step = 0;  // steps done, skipped ones included
  int64_t consumed_samples = 0;
  int64_t consumed_tokens = 0;  // positions of original tokens
  int64_t skipped_steps = 0;
  int64_t skipped_in_row = 0;

  bool operator==(const TrainCounters&) const = default;
};

}  // namespace phalanx
