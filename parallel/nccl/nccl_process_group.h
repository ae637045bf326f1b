// NcclProcessGroup: collectives on device tensors over NCCL.
#pragma once

#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "parallel/nccl/nccl_communicator.h"
#include "parallel/process_groups.h"

namespace phalanx {

/// Operations under way. Dropped work needs nothing: no host memory is involved.
class NcclWork final : public Work {
 public:
  void add(NcclCommunicator& communicator, NcclCommunicator::Event done) {
    operations_.emplace_back(&communicator, std::move(done));
  }
  void add_host(PendingWork work) { host_ = std::move(work); }

 private:
  void wait_impl() override {
    if (host_) host_->wait();
    for (const auto& [communicator, done] : operations_)
      communicator->finish_before_further_ops(done);
    operations_.clear();  // the events are free again
  }

  std::vector<std::pair<NcclCommunicator*, NcclCommunicator::Event>> operations_;
  PendingWork host_;
};

/// The host never waits: every operation starts behind the backend's ops so far, and the backend's
/// ops after the call (after `wait`, where there is one) start behind it. Sums of bf16 are rounded
/// where NCCL rounds them, which depends on its algorithm: each partial sum may be rounded to bf16;
/// gradients are f32. Results are the same bits on every run on the same GPUs and settings. Host
/// tensors and barriers go to `host`.
class NcclProcessGroup final : public ProcessGroup {
 public:
  /// `communicator` has the ranks of `host`, in their order.
  NcclProcessGroup(std::unique_ptr<ProcessGroup> host,
                   std::unique_ptr<NcclCommunicator> communicator, NcclMembers members,
                   CudaBackend& backend);

 private:
  using Counts = std::span<const int64_t>;
  void all_reduce_impl(const Tensor& x, ReduceOp op) override;
  void all_gather_impl(const Tensor& out, Counts counts) override;
  void reduce_scatter_impl(const Tensor& x, Counts counts) override;
  void all_to_all_impl(const Tensor& out, const Tensor& x, Counts send_counts,
                       Counts receive_counts) override;
  void broadcast_impl(const Tensor& x, int root) override;
  PendingWork exchange_async_impl(std::span<const Exchange> messages) override;
  void barrier_impl() override;
  void open_channels_impl(std::span<const ChannelEnd> ends) override;
  PendingWork reduce_scatter_async_impl(const Tensor& x, Counts counts) override;
  PendingWork all_gather_async_impl(const Tensor& out, Counts counts) override;

  struct Edge;
  bool goes_over_host(const Tensor& x);
  NcclCommunicator::Event start_all_gather(const Tensor& out, Counts counts);
  NcclCommunicator::Event start_reduce_scatter(const Tensor& x, Counts counts);
  std::vector<Edge> edges_of_all(std::span<const ChannelEnd> ends);
  NcclCommunicator* channel_of(int peer, int channel, bool sends);

  std::unique_ptr<ProcessGroup> host_;
  NcclMembers members_;
  std::unique_ptr<NcclCommunicator> communicator_;
  /// A communicator of two ranks, the lower first, per (peer, channel, sender) that was opened: an
  /// order in which both ends end them, as each end waits for the other.
  std::map<std::tuple<int, int, int>, std::unique_ptr<NcclCommunicator>> channels_;
};

/// Where this rank computes: host name and the GPU's number on its bus, the same for two ranks only
/// if they share a GPU.
std::string gpu_identity();

/// `host` with each group of more than one rank over NCCL: one communicator per group, split from
/// one of all ranks. Collective.
ProcessGroups make_nccl_process_groups(
    ProcessGroups host, const DeviceMesh& mesh, CudaBackend& backend,
    std::chrono::milliseconds timeout = std::chrono::minutes(10));

}  // namespace phalanx
