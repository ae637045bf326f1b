// Column- and row-parallel linear layers. Every `backward` reads as its `forward` from the last
// line to the first.
#include "parallel/tensor_parallel.h"

#include "parallel/regions.h"

namespace phalanx {
namespace {

Tensor rows_of_all_ranks(const Tensor& x, ProcessGroup& tp, Memory& memory, std::string_view name) {
  return memory.scratch.tensor(name, {x.shape.rows() * tp.size(), x.shape.back()}, x.dtype);
}

/// This rank's part of rows that all ranks have.
Tensor own_rows(const Tensor& rows, const ProcessGroup& tp) {
  const int64_t count = rows.shape[0] / tp.size();
  return rows.slice(tp.rank() * count, (tp.rank() + 1) * count);
}

}  // namespace

SequenceParallel effective_sequence_parallel(const TensorParallelContext& context) {
  return context.tp.size() == 1 ? SequenceParallel::off : context.sequence_parallel;
}

Placement row_wise_placement(const TensorParallelContext& context) {
  Placement placement = Placement::replicated();
  if (context.sequence_parallel == SequenceParallel::on)
    placement.partial_gradient.add(MeshAxis::tp);
  return placement;
}

ColumnParallelLinear::ColumnParallelLinear(const TensorParallelContext& context,
                                           const std::vector<LinearPart>& parts, const Init& init)
    : store_(context.parameters),
      ops_(context.backend),
      tp_(context.tp),
      sequence_parallel_(effective_sequence_parallel(context)) {
  check(!parts.empty(), "a column-parallel linear layer needs at least one part");
  for (const LinearPart& part : parts) {
    Placement placement = Placement::sharded(MeshAxis::tp, 0);
    placement.tp_replicas = part.tp_replicas;
    parameters_.push_back(&store_.add({.name = part.name,
                                       .global_shape = {part.out_features, init.in_features},
                                       .kind = init.kind,
                                       .placement = placement,
                                       .initialiser = init.initialiser},
                                      tp_.rank() / part.tp_replicas,
                                      tp_.size() / part.tp_replicas));
  }
}

const Parameter& ColumnParallelLinear::first_of(PartRange parts) const {
  check(0 <= parts.first && parts.count >= 1 &&
            parts.first + parts.count <= static_cast<int64_t>(parameters_.size()),
        "parts [", parts.first, ", ", parts.first + parts.count, ") of a linear layer with ",
        parameters_.size());
  return *parameters_[static_cast<size_t>(parts.first)];
}

int64_t ColumnParallelLinear::local_out_features(PartRange parts) const {
  int64_t features = 0;
  for (int64_t i = first_of(parts).index; i < first_of(parts).index + parts.count; ++i)
    features += store_[i].shape[0];
  return features;
}

void ColumnParallelLinear::forward(const Tensor& y, const Tensor& x, Saved& saved, Memory& memory,
                                   PartRange parts) const {
  const ArenaScope scope(memory.scratch);
  saved.x = x.as_matrix();
  Tensor rows = saved.x;
  if (sequence_parallel_ == SequenceParallel::on) {
    rows = rows_of_all_ranks(x, tp_, memory, "linear.gathered_x");
    GatherRegion::forward(tp_, rows, saved.x);
  }
  ops_.matmul(y.as_matrix(), rows, store_.fused_value(first_of(parts), parts.count),
              kTimesTransposed);
}

// dx = dy W, which is partial over tp because each rank has only some outputs; dW += dy^T x. The
// gathered x is gathered again instead of kept: that is what sequence parallel saves. Its gather
// runs beside the first product, and the reduce-scatter of dx beside the second.
void ColumnParallelLinear::backward(const Tensor& dx, const Tensor& dy, const Saved& saved,
                                    Memory& memory, PartRange parts) {
  const ArenaScope scope(memory.scratch);
  const Tensor weight = store_.fused_value(first_of(parts), parts.count);
  const Tensor dweight = store_.fused_gradient(first_of(parts), parts.count);
  if (sequence_parallel_ == SequenceParallel::off) {
    ops_.matmul(dx.as_matrix(), dy.as_matrix(), weight, kTimes);
    CopyRegion::backward(tp_, dx.as_matrix());
    weight_gradient(dweight, dy.as_matrix(), saved.x, memory);
    return;
  }
  const bool now = memory.deferred == nullptr;
  GatherRegion::Pending rows;
  if (now)
    rows = GatherRegion::start_forward(tp_, ops_, saved.x, memory.scratch, "linear.gathered_x");
  const Tensor drows = rows_of_all_ranks(dx, tp_, memory, "linear.gathered_dx");
  ops_.matmul(drows, dy.as_matrix(), weight, kTimes);
  if (now) rows.work->wait();
  const PendingWork scattering = GatherRegion::start_backward(tp_, drows);
  if (now) {
    ops_.matmul(dweight, dy.as_matrix(), rows.rows, kWeightGradient);
  } else {
    weight_gradient(dweight, dy.as_matrix(), saved.x, memory);
  }
  scattering->wait();
  ops_.copy(dx.as_matrix(), own_rows(drows, tp_));
}

// Now, or after the input half of a split backward, from copies that outlive its scratch memory.
void ColumnParallelLinear::weight_gradient(const Tensor& dweight, const Tensor& dy, const Tensor& x,
                                           Memory& memory) {
  if (memory.deferred == nullptr) {
    ops_.matmul(dweight, dy, x, kWeightGradient);
    return;
  }
  const Tensor kept = memory.saved.tensor("linear.deferred_dy", dy.shape, dy.dtype);
  ops_.copy(kept, dy);
  memory.deferred->push_back([this, dweight, kept, x](Arena& scratch) {
    const ArenaScope scope(scratch);
    Tensor rows = x;
    if (sequence_parallel_ == SequenceParallel::on) {
      rows = scratch.tensor("linear.gathered_x", {kept.shape[0], x.shape[1]}, x.dtype);
      GatherRegion::forward(tp_, rows, x);
    }
    ops_.matmul(dweight, kept, rows, kWeightGradient);
  });
}

RowParallelLinear::RowParallelLinear(const TensorParallelContext& context, const std::string& name,
                                     const Init& init)
    : ops_(context.backend),
      tp_(context.tp),
      sequence_parallel_(effective_sequence_parallel(context)),
      weight_(&context.parameters.add({.name = name,
                                       .global_shape = {init.out_features, init.in_features},
                                       .kind = init.kind,
                                       .placement = Placement::sharded(MeshAxis::tp, 1),
                                       .initialiser = init.initialiser},
                                      context.tp.rank(), context.tp.size())) {}

void RowParallelLinear::forward(const Tensor& y, const Tensor& x, Saved& saved,
                                Memory& memory) const {
  const ArenaScope scope(memory.scratch);
  saved.x = x.as_matrix();
  const bool cut = sequence_parallel_ == SequenceParallel::on;
  const Tensor rows = cut ? rows_of_all_ranks(y, tp_, memory, "linear.partial_y") : y.as_matrix();
  ops_.matmul(rows, saved.x, weight_->value, kTimesTransposed);
  if (cut) {
    ReduceScatterRegion::forward(tp_, y.as_matrix(), rows);
  } else {
    ReduceRegion::forward(tp_, rows);
  }
}

// dx = dy W; dW += dy^T x. Without sequence parallel dy is replicated over tp.
void RowParallelLinear::backward(const Tensor& dx, const Tensor& dy, const Saved& saved,
                                 Memory& memory) {
  const ArenaScope scope(memory.scratch);
  Tensor drows = dy.as_matrix();
  if (sequence_parallel_ == SequenceParallel::on) {
    drows = rows_of_all_ranks(dy, tp_, memory, "linear.gathered_dy");
    ReduceScatterRegion::backward(tp_, drows, dy.as_matrix());
  }
  ops_.matmul(dx.as_matrix(), drows, weight_->value, kTimes);
  if (memory.deferred == nullptr) {
    ops_.matmul(weight_->gradient, drows, saved.x, kWeightGradient);
    return;
  }
  // The gathered rows are gathered once more later: kept, they would be tp times as large.
  const Tensor kept = memory.saved.tensor("linear.deferred_dy", dy.as_matrix().shape, dy.dtype);
  ops_.copy(kept, dy.as_matrix());
  memory.deferred->push_back([this, kept, x = saved.x](Arena& scratch) {
    const ArenaScope deferred_scope(scratch);
    Tensor rows = kept;
    if (sequence_parallel_ == SequenceParallel::on) {
      rows = scratch.tensor("linear.gathered_dy", {x.shape[0], kept.shape[1]}, kept.dtype);
      ReduceScatterRegion::backward(tp_, rows, kept);
    }
    ops_.matmul(weight_->gradient, rows, x, kWeightGradient);
  });
}

}  // namespace phalanx
