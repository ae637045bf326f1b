// The loop over a schedule's actions.
#include "parallel/pipeline_executor.h"

namespace phalanx {

void run_pipeline(const std::vector<PipelineAction>& actions, PipelineStage& stage,
                  ProcessGroup& pp) {
  check_usage(pp.size() == 1, "pipeline-model-parallel-size ", pp.size(),
              " cannot run yet: stages do not exchange activations; use 1");
  for (size_t i = 0; i < actions.size(); ++i) {
    if (actions[i].kind == PipelineActionKind::forward) {
      stage.forward(actions[i], Tensor{}, Tensor{});
      continue;
    }
    bool last = true;
    for (size_t j = i + 1; j < actions.size(); ++j)
      last = last && actions[j].kind != PipelineActionKind::backward;
    stage.backward(actions[i], Tensor{}, Tensor{}, last);
  }
}

}  // namespace phalanx
