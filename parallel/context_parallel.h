// Context parallelism: which positions of a shared sequence each rank holds.
#pragma once

#include <string>
#include <vector>

#include "kernels/position_range.h"

namespace phalanx {

/// Positions that rank `rank` of `size` holds of a sequence of `positions`, ascending and disjoint.
/// Zigzag: the sequence is cut into 2 * size equal pieces, and a rank holds piece `rank` and piece
/// 2 * size - 1 - rank, because under a causal mask late positions see more keys: every pair of
/// pieces sees the same number. Pieces that meet are one range, so one rank holds one range.
/// `positions` must be a multiple of 2 * size, unless size is 1.
std::vector<PositionRange> context_positions(int64_t positions, int rank, int size);

/// What is wrong with cutting sequences of `positions` over `size` ranks in pieces of a multiple of
/// `multiple` positions (the PHD chunk, a sparse block, 1): a sentence with the nearest legal
/// lengths. Empty if nothing is.
std::vector<std::string> validate_context(int64_t positions, int64_t size, int64_t multiple);

}  // namespace phalanx
