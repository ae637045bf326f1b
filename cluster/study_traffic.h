// How many bytes a rank hands to each group in one training step, by closed formulas.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "parallel/process_group.h"

namespace phalanx {

/// Bytes as `Traffic` counts them: what the rank hands in, or contributes to an all-gather.
struct StepBytes {
  std::string group;  // "dp_cp"
  Collective operation = Collective::all_reduce;
  std::optional<int64_t> bytes{};  // absent: where experts get their rows from is up to the data

  bool operator==(const StepBytes&) const = default;
};

/// What `rank` of `world_size` hands in during one step of `config`, which has its vocabulary and
/// global batch size and is valid: groups of more than one rank, operations that move something.
/// Derived from how the layers communicate (parallel/README.md), not from running them; equal to
/// the counters in metrics.jsonl. Throws UsageError where the layout makes no mesh.
std::vector<StepBytes> predict_step_bytes(const RunConfig& config, int64_t world_size,
                                          int64_t rank = 0);

}  // namespace phalanx
