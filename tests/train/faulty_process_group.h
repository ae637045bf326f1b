// A process group that does one collective wrong, for tests of what finds that.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "kernels/cpu/cpu_backend.h"
#include "parallel/process_groups.h"

namespace phalanx {

/// What happens to the result: nothing is communicated, it is halved, zero, or (of a gather) its
/// first two pieces change places.
enum class FaultKind : uint8_t { drop, halve, zero, swap };

struct Fault {
  std::string group;  // empty: none
  Collective collective = Collective::all_reduce;
  FaultKind kind = FaultKind::drop;
};

/// Passes everything on to a real group, and spoils what `fault` says. Owns the real group.
class FaultyProcessGroup final : public ProcessGroup {
 public:
  FaultyProcessGroup(std::unique_ptr<ProcessGroup> inner, Fault fault)
      : ProcessGroup(inner->name(), inner->rank(), inner->size()),
        inner_(std::move(inner)),
        fault_(std::move(fault)) {}

 private:
  using Counts = std::span<const int64_t>;

  bool is(Collective collective) const { return fault_.collective == collective; }
  bool drops(Collective collective) const {
    return is(collective) && fault_.kind == FaultKind::drop;
  }
  void spoil(const Tensor& x) {
    if (x.numel() == 0 || x.dtype == DType::i32 || x.dtype == DType::i64) return;
    if (fault_.kind == FaultKind::zero) backend_.zero(x);
    if (fault_.kind == FaultKind::halve) backend_.scale(x, 0.5);
  }

  void all_reduce_impl(const Tensor& x, ReduceOp op) override {
    // Integers and maxima are counts and agreements; wrong ones end the step, and are found at
    // once.
    const bool spoils = is(Collective::all_reduce) && op == ReduceOp::sum && x.numel() > 1;
    if (spoils && fault_.kind == FaultKind::drop) return;
    inner_->all_reduce(x, op);
    if (spoils) spoil(x);
  }
  void all_gather_impl(const Tensor& out, Counts counts) override {
    if (drops(Collective::all_gather)) return;
    inner_->all_gather_in_place(out, counts);
    if (is(Collective::all_gather)) spoil_gathered(out, counts);
  }
  void spoil_gathered(const Tensor& out, Counts counts) {
    if (out.dtype == DType::i32 || out.dtype == DType::i64) return;  // sizes, checked by receivers
    if (fault_.kind != FaultKind::swap || counts[0] != counts[1]) return spoil(out);
    auto* bytes = static_cast<std::byte*>(out.data);
    const auto piece = static_cast<std::ptrdiff_t>(counts[0] * dtype_bytes(out.dtype));
    std::swap_ranges(bytes, bytes + piece, bytes + piece);
  }
  void reduce_scatter_impl(const Tensor& x, Counts counts) override {
    if (drops(Collective::reduce_scatter)) return;
    inner_->reduce_scatter_in_place(x, counts);
    if (is(Collective::reduce_scatter)) spoil(x);
  }
  void all_to_all_impl(const Tensor& out, const Tensor& x, Counts send_counts,
                       Counts receive_counts) override {
    inner_->all_to_all(out, x, send_counts, receive_counts);
    if (is(Collective::all_to_all)) spoil(out);
  }
  void broadcast_impl(const Tensor& x, int root) override { inner_->broadcast(x, root); }
  void barrier_impl() override { inner_->barrier(); }
  // Spoiled when they are done.
  class SpoilingWork final : public Work {
   public:
    SpoilingWork(PendingWork inner, FaultyProcessGroup& group, std::vector<Tensor> results)
        : inner_(std::move(inner)), group_(group), results_(std::move(results)) {}

   private:
    void wait_impl() override {
      inner_->wait();
      for (const Tensor& result : results_) group_.spoil(result);
    }
    PendingWork inner_;
    FaultyProcessGroup& group_;
    std::vector<Tensor> results_;
  };

  PendingWork exchange_async_impl(std::span<const Exchange> messages) override {
    std::vector<Exchange> others;
    std::vector<Tensor> received;
    for (const Exchange& message : messages) {
      if (message.peer == rank()) continue;
      others.push_back(message);
      if (message.receive) received.push_back(message.receive);
    }
    PendingWork work = inner_->exchange_async(others);
    if (!is(Collective::exchange)) return work;
    return std::make_unique<SpoilingWork>(std::move(work), *this, std::move(received));
  }
  PendingWork reduce_scatter_async_impl(const Tensor& x, Counts counts) override {
    if (drops(Collective::reduce_scatter)) return completed_work();
    PendingWork work = inner_->reduce_scatter_in_place_async(x, counts);
    if (!is(Collective::reduce_scatter)) return work;
    return std::make_unique<SpoilingWork>(std::move(work), *this, std::vector<Tensor>{x});
  }
  PendingWork all_gather_async_impl(const Tensor& out, Counts counts) override {
    if (drops(Collective::all_gather)) return completed_work();
    PendingWork work = inner_->all_gather_in_place_async(out, counts);
    if (!is(Collective::all_gather)) return work;
    return std::make_unique<SpoilingWork>(std::move(work), *this, std::vector<Tensor>{out});
  }

  std::unique_ptr<ProcessGroup> inner_;
  Fault fault_;
  CpuBackend backend_{1};
};

/// `groups` with the one that `fault` names made faulty.
inline ProcessGroups with_fault(ProcessGroups groups, const Fault& fault) {
  for (auto* group : {&groups.tp, &groups.cp, &groups.dp, &groups.dp_cp, &groups.pp, &groups.ep,
                      &groups.expert_tp, &groups.expert_dp})
    if ((*group)->name() == fault.group && (*group)->size() > 1)
      *group = std::make_unique<FaultyProcessGroup>(std::move(*group), fault);
  return groups;
}

}  // namespace phalanx
