// Which keys the ranks of a shared sequence read from each other: pure functions of the mask and of
// the cut, evaluated alike on both sides.
#pragma once

#include <span>
#include <vector>

#include "kernels/attention_mask.h"
#include "kernels/position_range.h"

namespace phalanx {

/// Copies of keys that travel together, because the same queries see them: all copies under naive
/// visibility; otherwise originals, and apart from them hidden copies.
struct CopyBand {
  int64_t first = 0;
  int64_t count = 0;
};
std::vector<CopyBand> copy_bands(const AttentionMask& mask);

/// Positions of `held` whose keys of `band` some query at `queries` sees, documents aside. Sparse
/// layers (LongGen) read whole blocks; of hidden copies only those just before a query range are
/// read (the halo: none for PHD, nor for PHD-CSWA cut at multiples of the chunk).
std::vector<PositionRange> positions_read(const AttentionMask& mask, const CopyBand& band,
                                          std::span<const PositionRange> queries,
                                          std::span<const PositionRange> held);

/// Keys of one band on their way from one rank to another.
struct KeyPiece {
  size_t band = 0;                       // of ContextPlan::bands
  std::vector<PositionRange> positions;  // global
  std::vector<PositionRange> rows;       // the same, along S of the rank that holds them
  int64_t count = 0;                     // positions in all
};

/// Step i: keys go to the rank i further round and come from the rank i back; gradients go home the
/// other way.
struct ContextStep {
  int to = 0;
  int from = 0;
  std::vector<KeyPiece> sent;
  std::vector<KeyPiece> received;
};

/// What one rank does in attention over a shared sequence: size - 1 steps, in some of which nothing
/// may travel.
struct ContextPlan {
  std::vector<PositionRange> own;  // positions of this rank
  std::vector<CopyBand> bands;
  std::vector<ContextStep> steps;
  std::vector<int64_t> largest;  // per band: positions of the largest piece between any two ranks
};
ContextPlan make_context_plan(const AttentionMask& mask, int64_t positions, int rank, int size);

}  // namespace phalanx
