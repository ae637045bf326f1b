// Where the ranks of a run are: on which node, in which pipeline stage.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/process_groups.h"

namespace phalanx {

/// Of all ranks, on every rank. Nodes are numbered in the order of their first ranks.
struct RankPlaces {
  std::vector<std::string> nodes;  // names
  std::vector<int> node;           // of each rank
  std::vector<int> stage;          // of each rank, in its pipeline

  const std::string& node_name_of(int rank) const {
    return nodes[static_cast<size_t>(node[static_cast<size_t>(rank)])];
  }
  int num_nodes() const { return static_cast<int>(nodes.size()); }
};

/// From the ranks' own names and stages.
RankPlaces make_rank_places(const std::vector<std::string>& names, std::vector<int> stages);

/// Collective over the world. `name` is that of this rank's node.
RankPlaces gather_rank_places(const ProcessGroups& groups, const std::string& name);

}  // namespace phalanx
