// StagedProcessGroup: a group of host memory that takes device tensors too, through host buffers.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "parallel/process_groups.h"

namespace phalanx {

/// For several ranks on one GPU, machines without NCCL, and tests. Device tensors are downloaded,
/// communicated by `host`, and uploaded; what a rank does not send is not downloaded, what does not
/// change is not uploaded. Asynchronous work is communicated beside the computation and uploaded by
/// its `wait`. Host tensors go straight to `host`. Buffers are kept: in steady state none is made.
class StagedProcessGroup final : public ProcessGroup {
 public:
  StagedProcessGroup(std::unique_ptr<ProcessGroup> host, Backend& backend);
  ~StagedProcessGroup() override;

 private:
  using Counts = std::span<const int64_t>;
  void all_reduce_impl(const Tensor& x, ReduceOp op) override;
  void all_gather_impl(const Tensor& out, Counts counts) override;
  void reduce_scatter_impl(const Tensor& x, Counts counts) override;
  void all_to_all_impl(const Tensor& out, const Tensor& x, Counts send_counts,
                       Counts receive_counts) override;
  void broadcast_impl(const Tensor& x, int root) override;
  PendingWork exchange_async_impl(std::span<const Exchange> messages) override;
  void barrier_impl() override { host_->barrier(); }
  PendingWork reduce_scatter_async_impl(const Tensor& x, Counts counts) override;
  PendingWork all_gather_async_impl(const Tensor& out, Counts counts) override;

  /// Host memory of the calls under way; free when nobody but its owner, `buffers_`, holds it.
  using Buffer = std::shared_ptr<std::vector<char>>;
  class StagedWork;

  Buffer buffer(int64_t bytes);
  Tensor own_piece(const Tensor& x, Counts counts) const;

  Backend& ops_;
  std::vector<Buffer> buffers_;
  std::unique_ptr<ProcessGroup> host_;  // dies first, because its work uses the buffers
};

/// `groups` with each group of more than one rank staged, and each of one with `backend`'s copies.
ProcessGroups staged(ProcessGroups groups, Backend& backend);

}  // namespace phalanx
