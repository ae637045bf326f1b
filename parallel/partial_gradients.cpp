// Sums that a placement asks for beside the bucket's own reduction.
#include "parallel/partial_gradients.h"

#include <numeric>

namespace phalanx {

void PartialGradients::sum(const Bucket& bucket) {
  ProcessGroup& tp = *groups_.tp;
  for (int64_t i = bucket.first_parameter; i < bucket.last_parameter; ++i) {
    const Parameter& parameter = store_[i];
    const Placement& placement = parameter.spec.placement;
    if (placement.partial_gradient.contains(MeshAxis::tp))
      tp.all_reduce(parameter.gradient, ReduceOp::sum);
    if (placement.tp_replicas > 1) {
      std::vector<int> replicas(static_cast<size_t>(placement.tp_replicas));
      std::iota(replicas.begin(), replicas.end(),
                tp.rank() / placement.tp_replicas * placement.tp_replicas);
      gradient_sum_(tp, replicas, parameter.gradient);
    }
    if (placement.is_shared_by_stages())
      gradient_sum_(*groups_.pp, {0, groups_.pp->size() - 1}, parameter.gradient);
  }
}

}  // namespace phalanx
