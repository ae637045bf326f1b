// ContextAttention: attention over sequences whose positions are shared by the ranks of a group.
//
// Each rank attends its own queries to its own keys where they lie, then to the keys it reads from
// each other rank, one rank per step; the parts meet through their log-sum-exp (as in ring
// attention, Liu et al. 2023). A step moves only what is read: originals, of PHD-SWA also the halo
// of hidden copies, of sparse layers only their blocks, of naive repetition all copies. In step i
// all ranks send to the rank i further round. Bytes per step are at most those of a ring that hands
// whole shares to its neighbour (a quarter less in all under a causal mask, where nobody sends what
// the receiver cannot see), nothing waits for what it must pass on, and gradients go straight home.
#pragma once

#include "core/model/context_plan.h"
#include "kernels/backend.h"
#include "kernels/base/arena.h"
#include "parallel/process_group.h"

namespace phalanx {

class ContextAttention {
 public:
  ContextAttention(Backend& backend, ProcessGroup& cp, const AttentionMask& mask);

  /// out, lse and inputs as of Backend::attention_forward, S being this rank's positions in the
  /// order of context_positions(); position runs and mask are set here. In a group of one this is
  /// that op. Parts of other ranks are rounded to T once each and summed in the accumulator type.
  void forward(const Tensor& out, const Tensor& lse, const AttentionInputs& inputs,
               Arena& scratch) const;
  /// As Backend::attention_backward. Gradients of keys are sums over the queries of all ranks;
  /// parts are rounded to T once each and summed in the accumulator type.
  void backward(const Backend::AttentionBackward& arguments, const AttentionInputs& inputs,
                Arena& scratch) const;

 private:
  const ContextPlan& plan(int64_t local_positions) const;
  AttentionInputs own_inputs(const AttentionInputs& inputs) const;
  AttentionInputs part_inputs(const AttentionInputs& own, const KeyPiece& piece, const Tensor& k,
                              const Tensor& v) const;

  Backend& ops_;
  ProcessGroup& cp_;
  AttentionMask mask_;
  // The plan of the last number of positions: it never changes within a run, and steps of one rank
  // allocate nothing.
  mutable ContextPlan plan_;
  mutable int64_t planned_positions_ = -1;
};

}  // namespace phalanx
