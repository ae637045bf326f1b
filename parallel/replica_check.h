// ReplicaCheck: compares the copies of every replicated weight, because a bit that flips on one
// rank (memory, network, a wrong gradient sync) is otherwise trained on unseen.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/distributed_optimizer.h"
#include "parallel/piece_table.h"
#include "parallel/process_group.h"

namespace phalanx {

/// A rectangle of weights that this rank has in memory.
struct HeldWeight {
  Piece piece;
  Tensor value;  // compute dtype
};
/// Every parameter of `store`; of those that are not present between steps (ZeRO stage 3), this
/// rank's shards.
std::vector<HeldWeight> held_weights(const ParameterStore& store,
                                     const std::vector<OptimizerShard>& shards);

/// Copies are all ranks of `world` that hold the same rectangle of the same tensor, whatever axis
/// made them so: dp, cp, tp (norms, shared key-value heads), expert_dp, the two ends of a pipeline.
/// Borrows the weights' memory, backend and group. One thread.
class ReplicaCheck {
 public:
  /// Collective over `world`: agrees on what has copies.
  ReplicaCheck(std::vector<HeldWeight> weights, Backend& backend, ProcessGroup& world);

  /// Compares a 64-bit hash (XXH3) of the bytes of every compute weight that has copies. Collective
  /// and without other effect if all are equal: one all-reduce of 16 bytes per such piece of the
  /// model. Otherwise throws on every rank an error that names tensors, ranks and hosts: the ranks
  /// that differ from most, or all if there is no majority.
  void run();

  /// Pieces of the whole model that exist more than once.
  int64_t num_compared() const { return static_cast<int64_t>(replicated_.size()); }

 private:
  std::vector<Piece> own_pieces() const;
  uint64_t hash_of(const Tensor& value);
  [[noreturn]] void report(const std::vector<size_t>& different);

  std::vector<HeldWeight> weights_;
  Backend& ops_;
  ProcessGroup& world_;
  PieceTable table_;
  std::vector<size_t> replicated_;  // entries of table_ with more than one holder, ascending
  std::vector<int64_t> slot_;       // per weight: place in replicated_, -1 without copies
  std::vector<int64_t> hashes_;     // per slot: this rank's hash
  std::vector<int64_t> extremes_;   // [slots, 2]: what is reduced
  std::vector<uint8_t> host_;       // bounded copy of a weight
};

}  // namespace phalanx
