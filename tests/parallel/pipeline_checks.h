// Schedules run by the executor over a stage that only computes with integers, so that thread ranks
// and MPI ranks run the same checks. Throws on the first difference.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "parallel/pipeline_executor.h"

namespace phalanx::test {

struct PipelineCase {
  PipelineScheduleKind kind = PipelineScheduleKind::automatic;
  bool forward_only = false;
  int64_t num_chunks = 1;
  int64_t num_micro_batches = 1;
};

/// All legal schedules for a pipeline of `num_stages` ranks.
std::vector<PipelineCase> pipeline_cases(int64_t num_stages, int64_t max_chunks);

/// The actions of this rank.
std::vector<PipelineAction> actions_of(const ProcessGroup& pp, const PipelineCase& run);

/// Runs one case: every value, buffer, order and byte. `before_action` may sleep or throw.
using BeforeAction = std::function<void(const PipelineAction&)>;
void check_pipeline(ProcessGroup& pp, const PipelineCase& run,
                    const BeforeAction& before_action = {});

/// Sleeps for a random time, seeded by `seed`: up to 0.2 ms.
BeforeAction random_sleep(uint64_t seed);

}  // namespace phalanx::test
