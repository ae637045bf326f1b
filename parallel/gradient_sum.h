// GradientSum: sums a gradient over a few ranks of a group, in the cases that are no whole axis:
// key-value heads that several tp ranks hold, and embeddings tied across a pipeline's two ends.
#pragma once

#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "parallel/process_group.h"

namespace phalanx {

/// The lowest of the ranks adds up, piece by piece, and sends the sum back, so that all have the
/// same bits. Sends of n elements: 1 by each other rank, number of others by the lowest. Takes one
/// piece of device memory at the first call.
class GradientSum {
 public:
  explicit GradientSum(Backend& backend) : ops_(backend) {}

  /// gradient = sum over `ranks` of `group` (ascending, the caller among them; all call).
  void operator()(ProcessGroup& group, const std::vector<int>& ranks, const Tensor& gradient);

  static constexpr int64_t kPieceElements = 1 << 20;
  /// Of device memory, for a piece of any dtype.
  static constexpr int64_t kBytes = kPieceElements * dtype_bytes(DType::f64);

 private:
  void sum_piece(ProcessGroup& group, const std::vector<int>& ranks, const Tensor& piece);

  Backend& ops_;
  std::shared_ptr<void> received_;
};

}  // namespace phalanx
