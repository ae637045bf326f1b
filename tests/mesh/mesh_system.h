// MeshSystem: a whole training system of one rank without data and logs, for tests of meshes.
#pragma once

#include <functional>
#include <utility>

#include "core/train/layout_run.h"
#include "kernels/cpu/cpu_backend.h"

namespace phalanx::test {

/// Random ids that depend on `index` alone; `masked(position, sequence)` says which have no loss.
MicroBatch make_micro_batch(const LayoutCase& layout, int64_t index,
                            const std::function<bool(int64_t, int64_t)>& masked = {});

/// A LayoutRun that owns what it borrows.
class MeshSystem {
 public:
  MeshSystem(const LayoutCase& layout_case, const ParallelConfig& parallel,
             ProcessGroups process_groups)
      : layout(layout_case),
        groups(std::move(process_groups)),
        run(layout, parallel, backend, groups) {}

  StepMetrics step(const std::vector<MicroBatch>& global_batch) { return run.step(global_batch); }

  const LayoutCase layout;
  CpuBackend backend{1};
  ProcessGroups groups;
  LayoutRun run;
  ParameterStore& store = run.store();
  PhdStage& stage = run.stage();
  GradientBuffer& gradients = run.gradients();
  DistributedOptimizer& optimizer = run.optimizer();
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
