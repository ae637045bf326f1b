// MeshSystem: a whole training system of one rank without data and logs, for tests of meshes.
#pragma once

#include <optional>

#include "core/train/layout_check.h"
#include "core/train/memory_needs.h"
#include "core/train/train_step.h"
#include "kernels/cpu/cpu_backend.h"

namespace phalanx::test {

/// Random ids that depend on `index` alone; `masked(position, sequence)` says which have no loss.
MicroBatch make_micro_batch(const LayoutCase& layout, int64_t index,
                            const std::function<bool(int64_t, int64_t)>& masked = {});

/// Model, gradients and optimizer of one rank, with weights drawn from the layout's seed.
class MeshSystem {
 public:
  MeshSystem(const LayoutCase& layout, const ParallelConfig& parallel, ProcessGroups groups);

  /// This data-parallel rank's share of a global batch, and a step on it.
  StepMetrics step(const std::vector<MicroBatch>& global_batch);
  /// A step on the share itself.
  StepMetrics step_of_shard(const GlobalBatch& batch) { return train_step(*state_, batch); }

  const LayoutCase layout;
  CpuBackend backend{1};
  ProcessGroups groups;
  ParameterStore store;
  PhdStage stage;
  GradientBuffer::Options options;
  GradientBuffer gradients;
  DistributedOptimizer optimizer;
  StageSlots slots;  // of the schedule

 private:
  std::optional<TrainState> state_;
};

/// What a group's collectives have handed in between two moments.
struct TrafficSnapshot {
  explicit TrafficSnapshot(const ProcessGroup& process_group);
  /// Since then.
  Traffic since(Collective operation) const;

 private:
  const ProcessGroup& group_;
  std::vector<Traffic> begin_;
};

}  // namespace phalanx::test
