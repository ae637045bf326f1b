// TrainingSystem: one rank's whole training step without log and files, for the benchmarks of
// training.
#pragma once

#include <memory>
#include <vector>

#include "core/model/phd_stage.h"
#include "parallel/distributed_optimizer.h"
#include "parallel/pipeline_schedule.h"

namespace phalanx {

/// Gradients are reduced in a group of one, so this is the trainer's step without its log.
class TrainingSystem {
 public:
  TrainingSystem(const ModelConfig& model, const StageShape& shape, DType dtype, Backend& backend);

  int64_t tokens() const { return shape_.positions * shape_.sequences; }
  /// Model FLOPs of a step, forward and backward.
  double flops() const;
  /// One step; returns its loss.
  double step();

 private:
  ParameterStore& allocated(DType dtype);

  ModelConfig model_;
  OptimizerConfig config_;
  StageShape shape_;
  std::vector<MicroBatch> batch_;
  Backend& backend_;
  ProcessGroups groups_;
  ParameterStore store_;
  PhdStage stage_;
  GradientBuffer gradients_;
  DistributedOptimizer optimizer_;
  std::vector<PipelineAction> schedule_;
};

double median(std::vector<double> values);
/// The words of "a,b,c".
std::vector<std::string> words(const std::string& text);

}  // namespace phalanx
