// Pipeline schedules as data: lists of actions from pure functions. Something else executes them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/parallel_config.h"

namespace phalanx {

/// `backward` is both halves at once: `backward_input` gives the gradient of the chunk's input,
/// `backward_weight` then those of its parameters.
enum class PipelineActionKind : uint8_t { forward, backward, backward_input, backward_weight };
/// "forward", ...
const char* action_name(PipelineActionKind kind);

struct PipelineAction {
  PipelineActionKind kind;
  int64_t micro_batch;
  int64_t chunk;  // virtual stage on this rank; 0 without interleaving
  bool operator==(const PipelineAction&) const = default;
};

/// One rank's place in a pipeline and the work of a step. Virtual stage v of num_stages *
/// num_chunks is chunk v / num_stages of rank v % num_stages.
struct PipelineShape {
  int64_t stage = 0;
  int64_t num_stages = 1;
  int64_t num_chunks = 1;
  int64_t num_micro_batches = 1;
};

/// What `automatic` means: interleaved with several chunks per rank, else 1F1B.
PipelineScheduleKind resolve_schedule(PipelineScheduleKind kind, int64_t num_chunks);

/// What keeps the schedule from running: one sentence per problem with option, value and the
/// nearest legal value. Empty if it can run. `automatic` is resolved first.
std::vector<std::string> validate_schedule(PipelineScheduleKind kind, int64_t num_stages,
                                           int64_t num_chunks, int64_t num_micro_batches);

/// The actions of one rank in one training step. UsageError if validate_schedule finds a problem.
///   gpipe: all forwards, then all backwards (Huang et al. 2019).
///   1f1b: warm-up forwards, then one forward and one backward in turn (Narayanan et al. 2021).
///   interleaved: 1F1B over several chunks per rank, in groups of num_stages micro-batches (the
///     same, section 2.2).
///   zero-bubble: ZB-H1 (Qi et al. 2023): weight halves wait and fill the bubble at the end; no
///     rank holds more micro-batches than the fullest rank of 1F1B.
std::vector<PipelineAction> make_schedule(PipelineScheduleKind kind, const PipelineShape& shape);

/// Forwards only, for evaluation: groups of num_stages micro-batches pass chunk after chunk. Any
/// number of micro-batches.
std::vector<PipelineAction> make_forward_schedule(const PipelineShape& shape);

/// Most micro-batches of `chunk` whose forward ran and whose backward (both halves) did not yet:
/// the activation slots it needs. In the schedules above micro-batch m can use slot m %
/// max_in_flight: those alive at one time never share one.
int64_t max_in_flight(const std::vector<PipelineAction>& actions, int64_t chunk = 0);

}  // namespace phalanx
