// Pipeline schedules as data: lists of actions from pure functions. Something else executes them.
#pragma once

#include <cstdint>
#include <vector>

namespace phalanx {

enum class PipelineActionKind : uint8_t { forward, backward };

struct PipelineAction {
  PipelineActionKind kind;
  int64_t micro_batch;
  int64_t chunk;  // virtual stage on this rank; 0 without interleaving
  bool operator==(const PipelineAction&) const = default;
};

/// All forwards, then all backwards (Huang et al. 2019, GPipe).
std::vector<PipelineAction> gpipe_schedule(int64_t num_micro_batches);

/// Warm-up forwards, then one forward and one backward in turn (Narayanan et al. 2021, 1F1B
/// without flush between): rank `stage` of `num_stages`.
std::vector<PipelineAction> one_forward_one_backward_schedule(int64_t stage, int64_t num_stages,
                                                              int64_t num_micro_batches);

/// Most micro-batches whose forward ran and whose backward did not yet: activation slots needed.
int64_t max_in_flight(const std::vector<PipelineAction>& actions);

}  // namespace phalanx
