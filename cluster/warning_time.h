// How long before the time limit a run must be warned, so that its last save is done in time.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

namespace phalanx {

/// Seconds, from the saves and steps of earlier starts (records of ledger.jsonl and metrics.jsonl):
/// 60, because Slurm looks at its clock every 30 s only, plus twice the slowest save, plus the
/// slowest step. 180 if nothing was saved yet. At most half of `time_limit_seconds` (0: no limit),
/// so that a short job trains at all.
int64_t warning_seconds(const std::vector<nlohmann::json>& ledger,
                        const std::vector<nlohmann::json>& metrics, int64_t time_limit_seconds);

/// Minutes for --exit-duration-in-mins when the job has `seconds_left`: a minute less, for the
/// start and the end of the ranks, or a quarter less where there is little time at all.
double training_minutes(int64_t seconds_left);

}  // namespace phalanx
