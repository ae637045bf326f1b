// Ranks as threads of one process: the same collectives without MPI, for tests. A rank that throws
// poisons the others, so that they throw as well instead of waiting for it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "parallel/communication_thread.h"
#include "parallel/process_groups.h"
#include "parallel/thread_world.h"

namespace phalanx {

/// Sums go in rank order, bf16 sums in f32 with one rounding, so results are the same bits on every
/// run. Mismatched calls (another collective, other counts, other bytes) are found and named. A
/// message is copied when its second end is posted, so a sender may have to wait for the receiver.
class ThreadProcessGroup final : public ProcessGroup {
 public:
  struct Meeting {
    std::shared_ptr<ThreadWorld> world;
    std::shared_ptr<ThreadMeetingPoint> calls;        // of the rank's own thread
    std::shared_ptr<ThreadMeetingPoint> async_calls;  // of its communication thread
  };
  ThreadProcessGroup(std::string name, int rank, int size, Meeting meeting);
  ~ThreadProcessGroup() override;

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
  PendingWork reduce_scatter_async_impl(const Tensor& x, Counts counts) override;
  PendingWork all_gather_async_impl(const Tensor& out, Counts counts) override;

  class MessageWork;

  void all_gather_at(ThreadMeetingPoint& point, const Tensor& out, Counts counts);
  void reduce_scatter_at(ThreadMeetingPoint& point, const Tensor& x, Counts counts);

  Meeting meeting_;
  CommunicationThread communication_;
};

/// One rank's handle, used on its own thread.
class ThreadRank {
 public:
  ThreadRank(std::shared_ptr<ThreadWorld> world, int rank, int size)
      : world_(std::move(world)), rank_(rank), size_(size) {}

  int rank() const { return rank_; }
  int size() const { return size_; }
  /// The group called `name` of `ranks` (ascending, this rank among them). Every member asks for
  /// its groups in the same order; nobody waits.
  std::unique_ptr<ProcessGroup> group(const std::string& name, const std::vector<int64_t>& ranks);
  /// A group of all ranks.
  std::unique_ptr<ProcessGroup> world_group();
  ProcessGroups process_groups(const DeviceMesh& mesh);

 private:
  std::shared_ptr<ThreadWorld> world_;
  int rank_;
  int size_;
  std::map<std::string, int> num_made_;  // groups per name and ranks: equal asks are new groups
};

/// Runs `body` on `num_ranks` threads and waits for all. Rethrows the first exception that is not
/// just the echo of another rank's.
void run_thread_ranks(int num_ranks, const std::function<void(ThreadRank&)>& body);

}  // namespace phalanx
