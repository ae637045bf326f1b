// Conjugate pairs of collectives: forward and backward of every way a tensor enters or leaves a
// parallel region (Shoeybi et al. 2019 and Korthikanti et al. 2022, under Megatron's names). The
// only collectives inside layers. Each backward is the transpose of its forward: <A x, y> =
// <x, A' y>, summed over ranks (a replicated vector counts once, a partial or cut one on each
// rank).
#pragma once

#include <span>
#include <string_view>

#include "kernels/backend.h"
#include "kernels/base/arena.h"
#include "parallel/process_group.h"

namespace phalanx {

/// A replicated x enters the region. Forward: identity (nothing to call). Backward: all-reduce;
/// the incoming gradient is partial (each rank saw its own part of the weights), the result is
/// replicated.
struct CopyRegion {
  /// dx in place.
  static void backward(ProcessGroup& group, const Tensor& dx);
};

/// Partial sums leave the region. Forward: all-reduce. Backward: identity (nothing to call); the
/// incoming gradient is replicated.
struct ReduceRegion {
  /// y in place.
  static void forward(ProcessGroup& group, const Tensor& y);
};

/// Cut rows enter the region whole. Forward: all-gather along the outermost dim. Backward:
/// reduce-scatter; the incoming gradient is partial (every rank has one of all rows), the result
/// is cut.
struct GatherRegion {
  /// y [size * n, ...] = the ranks' x [n, ...].
  static void forward(ProcessGroup& group, const Tensor& y, const Tensor& x);
  /// dx [n, ...] of dy [size * n, ...]; dy is used up.
  static void backward(ProcessGroup& group, const Tensor& dx, const Tensor& dy);

  /// The same beside other work. `rows` [size * n, ...] from `scratch` is complete after the wait.
  struct Pending {
    Tensor rows;
    PendingWork work;
  };
  static Pending start_forward(ProcessGroup& group, Backend& ops, const Tensor& x, Arena& scratch,
                               std::string_view name);
  /// After the wait dx lies in dy, at this rank's rows; the others are undefined.
  static PendingWork start_backward(ProcessGroup& group, const Tensor& dy);
};

/// Partial sums of all rows leave the region cut. Forward: reduce-scatter along the outermost dim.
/// Backward: all-gather; the incoming gradient is cut (each rank has its own rows, complete).
struct ReduceScatterRegion {
  /// y [n, ...] of x [size * n, ...]; x is used up.
  static void forward(ProcessGroup& group, const Tensor& y, const Tensor& x);
  /// dx [size * n, ...] = the ranks' dy [n, ...].
  static void backward(ProcessGroup& group, const Tensor& dx, const Tensor& dy);
};

/// Rows travel to the ranks that work on them. Forward: all-to-all. Backward: all-to-all back; the
/// incoming gradient lies where the rows went and is complete.
struct DispatchRegion {
  /// Rows that go to each rank and come from each rank, in rank order.
  struct Counts {
    std::span<const int64_t> send;
    std::span<const int64_t> receive;
  };
  static void forward(ProcessGroup& group, const Tensor& y, const Tensor& x, const Counts& counts);
  static void backward(ProcessGroup& group, const Tensor& dx, const Tensor& dy,
                       const Counts& counts);
};

}  // namespace phalanx
