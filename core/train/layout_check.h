// Layout check: a model in a parallel layout against the same model on one rank, in the same
// processes: loss, every gradient, the gradient norm, and the weights after the steps.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/train/layout_run.h"
#include "parallel/device_mesh.h"

namespace phalanx {

/// What differed first. Values are compared in this order: losses, gradients in the order of the
/// forward, the gradient norm, weights: what is found first is nearest to the cause.
struct LayoutDifference {
  int64_t step = 0;
  std::string what;  // "loss", "gradient norm", "gradient of layers.00.attention.q.weight", ...
  double difference = 0;
  double tolerance = 0;
  std::string tensor;  // the first tensor that differs, as `what`; empty if only scalars do
  std::string axis;    // the axis that is wrong on its own, or "the combination of axes"
};

/// Rounding of loss and gradients in another order of sums, relative to the largest value:
/// c eps sqrt(terms) of the longest sum of the case.
double rounding_tolerance(const LayoutCase& which);

/// What was compared, over all steps.
struct LayoutStatistics {
  int64_t num_sharded_layers = 0;  // of this rank, whose weights are whole only while they run
  int64_t num_tensors = 0;         // parameters; gradient and weights of each, after every step
  double largest_relative = 0;     // difference over the tensor's largest value
  double nearest_tolerance = 0;    // largest difference over tolerance; above 1 is a difference
  std::string nearest;             // what that was
};

/// Empty if `which` is the same on the mesh as on one rank, else one entry; the same on all ranks.
/// Collective over the world of `groups`. Tolerances are c eps sqrt(terms) max|reference|. Adds to
/// `statistics` if given.
std::vector<LayoutDifference> compare_with_one_rank(const LayoutCase& which, Backend& backend,
                                                    ProcessGroups& groups,
                                                    LayoutStatistics* statistics = nullptr);

/// Makes the groups of a mesh over the same ranks. Collective.
using GroupsOfMesh = std::function<ProcessGroups(const DeviceMesh&)>;

struct LayoutReport {
  std::vector<LayoutDifference> differences;  // none or one
  LayoutStatistics statistics;
};

/// The same, and where there is a difference, which axis makes it: each axis of `which` is tried
/// alone, with data-parallel ranks in place of the others.
LayoutReport verify_layout(const LayoutCase& which, Backend& backend, int64_t world_size,
                           const GroupsOfMesh& groups_of);

}  // namespace phalanx
