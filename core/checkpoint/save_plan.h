// Which rank writes which rectangle of which tensor, so that every element is written exactly once.
#pragma once

#include <cstdint>
#include <vector>

#include "core/checkpoint/manifest.h"
#include "parallel/distributed_optimizer.h"

namespace phalanx {

/// A rectangle to be written by `rank`, out of the piece it holds at `entry` of the table.
struct PlannedBlock {
  int64_t entry = 0;
  int rank = 0;
  int64_t row_begin = 0;  // of the global tensor; columns are all those of the piece
  int64_t row_end = 0;

  bool operator==(const PlannedBlock&) const = default;
};

/// The tensors of a shard that a checkpoint keeps, in the order of kPartPrefix.
std::array<Tensor, kNumParts> parts_of(const OptimizerShard& shard);

/// Covers every tensor of `table` without overlap, in the order of the table (name, column, row).
/// What only one rank holds is that rank's; what several hold (tied embeddings, whose shards may be
/// cut at different rows on both pipeline ends; shared key-value heads; replicated norms) goes to
/// the one of them with the fewest elements so far. Throws an error that names the tensor if a part
/// of it is nowhere. Pure function: every rank makes the same plan.
std::vector<PlannedBlock> plan_save(const PieceTable& table);

}  // namespace phalanx
