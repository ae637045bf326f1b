// Losses of all ranks together.
#include "core/model/loss_sums.h"

namespace phalanx {

// Stages without a loss have zeros; of the tp ranks, which all know the whole loss, one counts it.
LossSums sum_over_ranks(const LossSums& sums, const ProcessGroups& groups) {
  const bool counts = groups.tp->rank() == 0;
  double values[] = {counts ? sums.cross_entropy : 0.0, counts ? sums.z : 0.0, sums.router_balance,
                     sums.router_z};
  groups.world->all_reduce(cpu_tensor(values, {4}), ReduceOp::sum);
  return {.cross_entropy = values[0],
          .z = values[1],
          .router_balance = values[2],
          .router_z = values[3]};
}

}  // namespace phalanx
