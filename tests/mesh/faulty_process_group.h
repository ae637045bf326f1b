// FaultyProcessGroup: a group of which chosen collectives go wrong, to prove that tests can fail.
#pragma once

#include <functional>
#include <memory>

#include "parallel/process_group.h"

namespace phalanx::test {

/// Hands everything on to another group of the same ranks. Before each collective `fault` is asked
/// with its operation and the tensor it works on.
class FaultyProcessGroup final : public ProcessGroup {
 public:
  enum class Fault : uint8_t {
    none,
    skipped,  // nothing is communicated: all ranks must agree on it
    changed   // the result is changed, here only
  };
  using FaultOf = std::function<Fault(Collective operation, const Tensor& x)>;

  FaultyProcessGroup(std::unique_ptr<ProcessGroup> group, FaultOf fault)
      : ProcessGroup(group->name(), group->rank(), group->size()),
        group_(std::move(group)),
        fault_(std::move(fault)) {}

 private:
  using Counts = std::span<const int64_t>;

  template <class Call>
  void run(Collective operation, const Tensor& x, const Call& call) {
    const Fault fault = fault_(operation, x);
    if (fault != Fault::skipped) call();
    if (fault == Fault::changed)
      dispatch_float(x.dtype, [&]<class T>() { x.as<T>()[0] = T(double(x.as<T>()[0]) * 1.001); });
  }

  void all_reduce_impl(const Tensor& x, ReduceOp op) override {
    run(Collective::all_reduce, x, [&] { group_->all_reduce(x, op); });
  }
  void all_gather_impl(const Tensor& out, Counts counts) override {
    run(Collective::all_gather, out, [&] { group_->all_gather_in_place(out, counts); });
  }
  void reduce_scatter_impl(const Tensor& x, Counts counts) override {
    run(Collective::reduce_scatter, x, [&] { group_->reduce_scatter_in_place(x, counts); });
  }
  void all_to_all_impl(const Tensor& out, const Tensor& x, Counts send_counts,
                       Counts receive_counts) override {
    run(Collective::all_to_all, out,
        [&] { group_->all_to_all(out, x, send_counts, receive_counts); });
  }
  void broadcast_impl(const Tensor& x, int root) override {
    run(Collective::broadcast, x, [&] { group_->broadcast(x, root); });
  }
  void barrier_impl() override { group_->barrier(); }
  PendingWork exchange_async_impl(std::span<const Exchange> messages) override {
    PendingWork work = completed_work();
    const Tensor first = messages.empty() ? Tensor{} : messages.front().send;
    run(Collective::exchange, first, [&] { work = group_->exchange_async(messages); });
    return work;
  }
  PendingWork reduce_scatter_async_impl(const Tensor& x, Counts counts) override {
    reduce_scatter_impl(x, counts);
    return completed_work();
  }
  PendingWork all_gather_async_impl(const Tensor& out, Counts counts) override {
    all_gather_impl(out, counts);
    return completed_work();
  }

  std::unique_ptr<ProcessGroup> group_;
  FaultOf fault_;
};

}  // namespace phalanx::test
