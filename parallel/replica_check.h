// ReplicaCheck: compares the copies of every replicated weight, because a bit that flips on one
// rank (memory, network, a wrong gradient sync) is otherwise trained on unseen.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/parameter.h"
#include "parallel/piece_table.h"
#include "parallel/process_group.h"

namespace phalanx {

/// Copies are all ranks of `world` that hold the same rectangle of the same tensor, whatever axis
/// made them so: dp, cp, tp (norms, shared key-value heads), expert_dp, the two ends of a pipeline.
/// Borrows store, backend and group. One thread.
class ReplicaCheck {
 public:
  /// Collective over `world`: agrees on what has copies. The store's registration is complete.
  ReplicaCheck(const ParameterStore& store, Backend& backend, ProcessGroup& world);

  /// Compares a 64-bit hash (XXH3) of the bytes of every compute weight that has copies. Collective
  /// and without other effect if all are equal: one all-reduce of 16 bytes per such piece of the
  /// model. Otherwise throws on every rank an error that names tensors, ranks and hosts: the ranks
  /// that differ from most, or all if there is no majority.
  void run();

  /// Pieces of the whole model that exist more than once.
  int64_t num_compared() const { return static_cast<int64_t>(replicated_.size()); }

 private:
  uint64_t hash_of(const Tensor& value);
  [[noreturn]] void report(const std::vector<size_t>& different);

  const ParameterStore& store_;
  Backend& ops_;
  ProcessGroup& world_;
  PieceTable table_;
  std::vector<size_t> replicated_;  // entries of table_ with more than one holder, ascending
  std::vector<int64_t> slot_;       // per parameter: place in replicated_, -1 without copies
  std::vector<int64_t> hashes_;     // per slot: this rank's hash
  std::vector<int64_t> extremes_;   // [slots, 2]: what is reduced
  std::vector<uint8_t> host_;       // bounded copy of a weight
};

}  // namespace phalanx
