// The conjugate pairs, spelled as collectives.
#include "parallel/regions.h"

namespace phalanx {

void CopyRegion::backward(ProcessGroup& group, const Tensor& dx) {
  group.all_reduce(dx, ReduceOp::sum);
}

void ReduceRegion::forward(ProcessGroup& group, const Tensor& y) {
  group.all_reduce(y, ReduceOp::sum);
}

void GatherRegion::forward(ProcessGroup& group, const Tensor& y, const Tensor& x) {
  group.all_gather(y, x);
}

void GatherRegion::backward(ProcessGroup& group, const Tensor& dx, const Tensor& dy) {
  group.reduce_scatter(dx, dy);
}

GatherRegion::Pending GatherRegion::start_forward(ProcessGroup& group, Backend& ops,
                                                  const Tensor& x, Arena& scratch,
                                                  std::string_view name) {
  const int64_t own = x.shape[0];
  Pending pending;
  pending.rows = scratch.tensor(name, x.shape.with_dim(0, own * group.size()), x.dtype);
  ops.copy(pending.rows.slice(group.rank() * own, (group.rank() + 1) * own), x);
  pending.work = group.all_gather_in_place_async(
      pending.rows.view({pending.rows.numel()}),
      std::vector<int64_t>(static_cast<size_t>(group.size()), x.numel()));
  return pending;
}

PendingWork GatherRegion::start_backward(ProcessGroup& group, const Tensor& dy) {
  return group.reduce_scatter_in_place_async(
      dy.view({dy.numel()}),
      std::vector<int64_t>(static_cast<size_t>(group.size()), dy.numel() / group.size()));
}

void ReduceScatterRegion::forward(ProcessGroup& group, const Tensor& y, const Tensor& x) {
  group.reduce_scatter(y, x);
}

void ReduceScatterRegion::backward(ProcessGroup& group, const Tensor& dx, const Tensor& dy) {
  group.all_gather(dx, dy);
}

void DispatchRegion::forward(ProcessGroup& group, const Tensor& y, const Tensor& x,
                             const Counts& counts) {
  group.all_to_all(y, x, counts.send, counts.receive);
}

void DispatchRegion::backward(ProcessGroup& group, const Tensor& dx, const Tensor& dy,
                              const Counts& counts) {
  group.all_to_all(dx, dy, counts.receive, counts.send);
}

}  // namespace phalanx
