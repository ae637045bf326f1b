// Runs a schedule over one pipeline stage.
#pragma once

#include "kernels/base/tensor.h"
#include "parallel/pipeline_schedule.h"
#include "parallel/process_group.h"

namespace phalanx {

/// One rank's part of the layers. The first stage reads its micro-batch itself, the last computes
/// the loss itself: `input` and `output` (and their gradients) are absent there.
class PipelineStage {
 public:
  virtual ~PipelineStage() = default;
  virtual void forward(const PipelineAction& action, const Tensor& input, const Tensor& output) = 0;
  /// Also receives whether this is the last backward of the step on this rank, after which
  /// parameter gradients are final.
  virtual void backward(const PipelineAction& action, const Tensor& dinput, const Tensor& doutput,
                        bool last) = 0;
};

/// Executes `actions` in order. Sizes of pp greater than 1 are refused until stages exchange
/// activations.
void run_pipeline(const std::vector<PipelineAction>& actions, PipelineStage& stage,
                  ProcessGroup& pp);

}  // namespace phalanx
