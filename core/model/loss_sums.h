// LossSums: what the losses of a step add up to.
#pragma once

#include "parallel/process_groups.h"

namespace phalanx {

/// Sums over what this rank has seen since `begin_step`.
struct LossSums {
  double cross_entropy = 0;   // over its loss tokens; the same on all tp ranks
  double z = 0;               // of logsumexp^2, without its coefficient
  double router_balance = 0;  // this rank's share of the experts' load-balance loss,
  double router_z = 0;        // and of the router's z-loss, without coefficients
};

/// The same numbers of the whole global batch. Collective over the world.
LossSums sum_over_ranks(const LossSums& sums, const ProcessGroups& groups);

}  // namespace phalanx
