// Expert parallel: rows travel to the ranks that hold their experts, and back. Knows nothing of
// what experts compute.
#pragma once

#include <vector>

#include "kernels/backend.h"
#include "kernels/base/arena.h"
#include "parallel/process_group.h"

namespace phalanx {

/// The ranks that share a layer's experts (expert view of the mesh).
struct ExpertGroups {
  ProcessGroup& ep;         // each has other experts
  ProcessGroup& expert_tp;  // share the matrices of the same experts
};

/// Moves rows between their own order and expert order. Dropless: every choice travels. Rank r of
/// ep holds experts [r E/ep, (r + 1) E/ep); the ranks of expert_tp all see the rows of all of them.
class ExpertDispatcher {
 public:
  /// Where the choices of n rows, k experts each (M = n k), go: one micro-batch's. m rows arrive.
  struct Route {
    Tensor places;                     // [n, k] i32: of each choice, sorted by expert
    Tensor order;                      // [m, 1] i32: of each row as it arrives, by local expert
    std::vector<int64_t> sent;         // [ep] rows to each rank
    std::vector<int64_t> received;     // [ep] rows from each rank
    std::vector<int64_t> gathered;     // [expert_tp] rows each rank received
    std::vector<int64_t> expert_rows;  // [E/ep] rows of each local expert
    int64_t rows() const { return order.shape[0]; }  // m
  };

  /// Throws if ep does not divide the experts.
  ExpertDispatcher(Backend& backend, const ExpertGroups& groups, int64_t num_experts);

  int64_t first_expert() const { return groups_.ep.rank() * local_experts_; }
  int64_t local_experts() const { return local_experts_; }

  /// The route of `experts` [n, k] i32 and the local choices of each expert, counts [E] i64.
  /// Exchanges counts: 8 E bytes by all-to-all over ep, 8 E by all-gather over expert_tp. On a null
  /// backend with silent groups, the route of even choices with kPlannedExcess on top.
  void route(Route& route, const Tensor& counts, const Tensor& experts, Memory& memory) const;

  /// y [m, W] by local expert, of x [n, W] (each row goes to its k experts) or [M, 1] (a value per
  /// choice). All-to-all of M W elements, then all-gather over expert_tp.
  void dispatch(const Tensor& y, const Tensor& x, const Route& route, Memory& memory) const;
  /// The transpose of `dispatch`, hence its backward, and dispatch the backward of collect: y [n,
  /// W] = added (acc, optional) + sum over a row's choices of x [m, W], itself a partial sum over
  /// expert_tp; or y [M, 1] without a sum. Reduce-scatter over expert_tp, then all-to-all.
  void collect(const Tensor& y, const Tensor& x, const Route& route, Memory& memory,
               const Tensor& added = {}) const;

  /// Rows that a rank is planned to receive from others over those of even routing. Routers with a
  /// balance loss stay below it after the first steps; beyond it the arenas take further blocks.
  static constexpr double kPlannedExcess = 0.25;

 private:
  /// Scratch memory of rows on their way.
  struct Passage {
    Tensor sorted;                // [M, W]: as they leave for ep, and come back
    Tensor all;                   // [m, W]: as they lie after the gather over expert_tp
    Tensor own;                   // this rank's rows of `all`
    std::vector<int64_t> counts;  // [expert_tp] elements of `all`
  };
  /// For rows as wide as those of `of`.
  Passage passage(const Tensor& of, const Route& route, Memory& memory) const;
  static Tensor places_of(const Route& route, int64_t rows);
  std::vector<int64_t> exchange_counts(const std::vector<int64_t>& sent) const;

  Backend& ops_;
  ExpertGroups groups_;
  int64_t num_experts_;
  int64_t local_experts_;
};

}  // namespace phalanx
