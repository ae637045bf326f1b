// NcclCommunicator: one NCCL communicator, the stream its operations run on, and what is under way.
#pragma once

#include <nccl.h>

#include <chrono>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "parallel/nccl/nccl_watchdog.h"

namespace phalanx {

/// Who talks over a communicator; every error names it.
struct NcclMembers {
  std::string name;                  // of the group
  int rank = 0;                      // in the group
  std::vector<int64_t> world_ranks;  // of all members, by rank
};

/// What all communicators of one rank share.
struct NcclContext {
  CudaBackend& backend;
  std::shared_ptr<NcclWatchdog> watchdog;
  /// How long an operation may be under way, from its call on. A first operation of a kind connects
  /// the ranks, and all wait for the slowest rank, so that minutes are no fault.
  std::chrono::milliseconds timeout = std::chrono::minutes(10);
};

/// Operations start when the backend's stream has reached the point of the call and run on a stream
/// of their own; the host never waits for them. NCCL itself is never waited for without a deadline
/// (its communicators are non-blocking). An operation that fails or does not end aborts the
/// communicator; every later call on any communicator of the rank throws the reason. One thread
/// calls; the watchdog looks on.
class NcclCommunicator final : public NcclWatched {
 public:
  /// Recorded behind an operation.
  using Event = std::shared_ptr<CUevent_st>;

  /// The communicator of all ranks. Collective; `id` is the same on all of them.
  NcclCommunicator(NcclMembers members, const ncclUniqueId& id, const NcclContext& context);
  ~NcclCommunicator() override;
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  /// A communicator of those of this one's ranks that give the same colour, in the order of their
  /// ranks. Collective over this one; kNoColour takes part for the others' sake and gets null.
  static constexpr int kNoColour = NCCL_SPLIT_NOCOLOR;
  std::unique_ptr<NcclCommunicator> split(NcclMembers members, int colour);

  /// Runs enqueue(communicator, stream), which makes NCCL calls and returns their result.
  template <class Enqueue>
  Event run(const char* operation, Enqueue&& enqueue) {
    const std::lock_guard lock(mutex_);
    begin(operation);
    return end(enqueue(comm_, stream_));
  }
  /// The backend's further ops wait for the operation.
  void finish_before_further_ops(const Event& done);
  void throw_if_failed() { context_.watchdog->throw_if_failed(); }

  void look() override;

 private:
  struct UnderWay {
    Event done;
    const char* operation;
    int64_t number;
    std::chrono::steady_clock::time_point since;
  };
  NcclCommunicator(NcclMembers members, ncclComm_t comm, const NcclContext& context);
  void open();
  void begin(const char* operation);
  Event end(ncclResult_t result);
  void settle(ncclComm_t comm, ncclResult_t result);
  ncclResult_t poll(ncclComm_t comm, ncclResult_t result) const;
  Event free_event();
  void give_up(const char* operation, int64_t number, const std::string& reason);
  std::string text_of(const char* operation, int64_t number, const std::string& reason) const;

  NcclMembers members_;
  NcclContext context_;
  std::mutex mutex_;  // all below: the watchdog looks at it too
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  Event reached_;              // where the backend's stream was at the last call
  std::vector<Event> events_;  // free where nobody else holds them
  std::deque<UnderWay> under_way_;
  const char* operation_ = "creation";  // the last one and its number
  int64_t number_ = 0;
};

/// Makes calls(note) inside one group of NCCL calls, in which each result goes to `note`. The first
/// error, or what the group's end says.
template <class Calls>
ncclResult_t nccl_grouped(Calls&& calls) {
  ncclResult_t first = ncclGroupStart();
  if (first != ncclSuccess) return first;
  calls([&first](ncclResult_t result) {
    if (first == ncclSuccess && result != ncclInProgress) first = result;
  });
  const ncclResult_t last = ncclGroupEnd();
  return first == ncclSuccess ? last : first;
}

}  // namespace phalanx
