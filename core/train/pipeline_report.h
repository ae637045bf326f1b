// What a pipeline's stages hold and how long its ranks idle: predicted and measured.
#pragma once

#include <string>
#include <vector>

#include "core/model/stage_options.h"
#include "parallel/pipeline_timing.h"
#include "parallel/process_groups.h"

namespace phalanx {

/// One pipeline as configured.
struct PipelineQuestion {
  const ModelConfig& model;  // with its vocabulary
  const ParallelConfig& parallel;
  int64_t seq_length = 0;
  int64_t num_micro_batches = 1;  // per data-parallel rank and step
};

/// Part of a step that the pipeline's ranks idle: its action lists side by side, each action as
/// long as its FLOPs, the backward twice the forward (and the forward again where whole layers are
/// recomputed). Messages, optimizer and uneven speed are left out. 0 without a pipeline.
double predicted_bubble_fraction(const PipelineQuestion& question);

/// Lines " stage 0: layers 0-3, 26.1 % of the FLOPs" with the schedule and the predicted bubble
/// above them; what is recomputed where anything is. Empty without a pipeline and recompute.
std::string pipeline_text(const PipelineQuestion& question);

/// Adds up what this rank's pipeline group has waited in the steps of a run. One thread.
class BubbleMeter {
 public:
  explicit BubbleMeter(const ProcessGroups& groups) : groups_(groups) {}
  void begin_step() { waited_before_ = groups_.pp->waiting_seconds(); }
  void end_step(double seconds) {
    waited_ += groups_.pp->waiting_seconds() - waited_before_;
    seconds_ += seconds;
  }
  /// Waiting for pipeline messages over the time of the steps, the mean of all ranks. Collective
  /// over the world. 0 before the first step.
  double fraction() const;

 private:
  const ProcessGroups& groups_;
  double waited_before_ = 0;
  double waited_ = 0;
  double seconds_ = 0;
};

}  // namespace phalanx
