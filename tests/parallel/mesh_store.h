// A hand-made store that has one parameter of every kind of placement: what tests of pieces,
// replicas and weights files run on.
#pragma once

#include "parallel/device_mesh.h"
#include "parallel/parameter.h"
#include "parallel/process_groups.h"

namespace phalanx::test {

inline constexpr int64_t kNumTestExperts = 4;

/// Registers the parameters that `groups`' rank holds: an embedding that both ends of the pipeline
/// have, layers shared out over the stages, experts over ep.
inline void register_on_mesh(ParameterStore& store, const ProcessGroups& groups,
                             int64_t kv_pieces) {
  const int tp = groups.tp->size();
  const int rank = groups.tp->rank();
  const int stage = groups.pp->rank();
  const int stages = groups.pp->size();
  const auto add = [&](const std::string& name, const Shape& shape, Placement placement, int piece,
                       int pieces) {
    store.add({.name = name,
               .global_shape = shape,
               .kind = ParameterKind::attention,
               .placement = placement,
               .initialiser = {.stddev = 0.5}},
              piece, pieces);
  };
  const auto rows = Placement::sharded(MeshAxis::tp, 0);
  const auto columns = Placement::sharded(MeshAxis::tp, 1);
  if (stage == 0 || stage == stages - 1) add("embedding.weight", {24, 5}, rows, rank, tp);
  for (int layer = 0; layer < 2; ++layer) {
    if (layer * stages / 2 != stage) continue;
    const std::string prefix = "layers.0" + std::to_string(layer) + ".";
    add(prefix + "norm", {9}, Placement::replicated(), 0, 1);
    add(prefix + "q", {8, 6}, rows, rank, tp);
    const int pieces = std::min(tp, static_cast<int>(kv_pieces));
    add(prefix + "kv", {4, 6}, rows, rank / (tp / pieces), pieces);
    add(prefix + "out", {7, 8}, columns, rank, tp);
    add(prefix + "bias", {8}, rows, rank, tp);
    const int64_t share = kNumTestExperts / groups.ep->size();
    for (int64_t i = groups.ep->rank() * share; i < (groups.ep->rank() + 1) * share; ++i)
      add(prefix + "experts.0" + std::to_string(i) + ".up", {8, 3},
          Placement::sharded(MeshAxis::expert_tp, 0), groups.expert_tp->rank(),
          groups.expert_tp->size());
  }
}

}  // namespace phalanx::test
