// Layouts worth trying, for --layouts auto.
#pragma once

#include <string>
#include <vector>

#include "core/config.h"

namespace phalanx {

/// Layouts of one node count that are tried at most.
inline constexpr int64_t kMostLayouts = 3;

/// Every layout "tp1 pp2 ..." that has whole axes on nodes x ranks_per_node, tp within a node.
/// Whether the model can be cut so is for validate() to say.
std::vector<std::string> candidate_layouts(const ModelConfig& model, int64_t nodes,
                                           int64_t ranks_per_node);

/// How long a step is likely to take in comparison with other layouts of the same run, in FLOPs of
/// one rank: its share of the model's FLOPs / (1 - predicted bubble) + 4000 for every byte handed
/// to groups that leave the node and 400 for one that stays in it (tp); experts' rows as if routers
/// spread them evenly. Because of what GPUs and their links have: 400 TFLOP/s, 100 GB/s between
/// nodes, 1 TB/s inside.
double layout_cost(const RunConfig& config, int64_t nodes, int64_t ranks_per_node);

}  // namespace phalanx
