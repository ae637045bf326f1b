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
