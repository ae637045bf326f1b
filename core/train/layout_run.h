// LayoutRun: a whole training system of one rank without data, logs and memory check: what the
// layout check and tests of meshes run.
#pragma once

#include <optional>
#include <vector>

#include "core/train/train_step.h"

namespace phalanx {

/// What runs. Small: every rank also runs all of it alone.
struct LayoutCase {
  ModelConfig model;
  ParallelConfig parallel;
  OptimizerConfig optimizer;
  StageShape shape;
  int64_t num_micro_batches = 1;  // of the global batch
  int64_t num_steps = 2;
  DType dtype = DType::f64;
  uint64_t seed = 1234;
  bool documents = false;  // batches with several documents, masked and positioned apart
};

/// Model, gradients and optimizer of one rank, with weights drawn from the case's seed. Borrows the
/// case, the backend and the groups. One thread; steps are collective.
class LayoutRun {
 public:
  /// In the layout `parallel`, which need not be the case's own.
  LayoutRun(const LayoutCase& which, const ParallelConfig& parallel, Backend& backend,
            ProcessGroups& groups);

  /// A step on this data-parallel rank's share of a global batch.
  StepMetrics step(const std::vector<MicroBatch>& global_batch);
  /// A step on the share itself.
  StepMetrics step_of_shard(const GlobalBatch& batch) { return train_step(*state_, batch); }

  ParameterStore& store() { return store_; }
  PhdStage& stage() { return stage_; }
  GradientBuffer& gradients() { return gradients_; }
  DistributedOptimizer& optimizer() { return optimizer_; }
  /// Layers whose weights are whole only while they run.
  const std::vector<ParameterRange>& sharded_layers() const { return options_.units; }
  /// Activation slots of the schedule.
  const StageSlots& slots() const { return slots_; }

 private:
  const LayoutCase& which_;
  ProcessGroups& groups_;
  ParameterStore store_;
  PhdStage stage_;
  GradientBuffer::Options options_;
  GradientBuffer gradients_;
  DistributedOptimizer optimizer_;
  StageSlots slots_;
  std::optional<TrainState> state_;
};

}  // namespace phalanx
