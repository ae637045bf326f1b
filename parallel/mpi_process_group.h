// MpiProcessGroup: collectives over MPI communicators, and the MPI library's life in this process.
#pragma once

// The C++ bindings, removed from the standard in 2012, would ask for one more library.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <source_location>
#include <string>

#include "parallel/communication_thread.h"
#include "parallel/process_group.h"

namespace phalanx {

/// Initialises MPI with MPI_THREAD_MULTIPLE and finalises it at the end of its life, which is after
/// all groups'. Errors come back as codes, never as an abort.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  /// Ends all ranks; for `main` after an exception.
  [[noreturn]] static void abort(int exit_code);

 private:
  int rank_ = 0;
  int size_ = 1;
};

/// What an MPI call was made for.
struct MpiCall {
  const std::string& group;
  const char* operation;
};

/// Throws unless `code` is MPI_SUCCESS; the text has the group, the operation and MPI's own words.
void mpi_check(int code, const MpiCall& call,
               std::source_location where = std::source_location::current());

/// Uses two communicators: one for the rank's thread and one for its communication thread.
class MpiProcessGroup final : public ProcessGroup {
 public:
  /// MPI counts are int; what is larger goes in pieces.
  static constexpr int64_t kMaxCount = int64_t{1} << 30;

  /// Takes over `communicator` (freed at the end). Collective over it. `max_count` bounds the
  /// elements per MPI call, and is smaller in tests only.
  MpiProcessGroup(std::string name, MPI_Comm communicator, int64_t max_count = kMaxCount);
  ~MpiProcessGroup() override;

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

  /// One of the two communicators with its own workspace, so that the threads share nothing.
  struct Channel {
    MPI_Comm communicator = MPI_COMM_NULL;
    std::vector<int> counts;
    std::vector<int> displacements;
  };
  using Requests = std::vector<MPI_Request>;
  class MessageWork;
  Requests post(std::span<const Exchange> messages, int first_tag);
  void wait_all(Requests& requests, Collective operation);

  void all_gather_on(Channel& channel, const Tensor& out, Counts counts);
  void reduce_scatter_on(Channel& channel, const Tensor& x, Counts counts);
  void set_counts(Channel& channel, Counts counts) const;
  template <class Body>
  void for_pieces(const Tensor& x, Body&& body) const;
  MPI_Op operation_for(DType dtype, ReduceOp op) const;
  MpiCall call(Collective operation) const { return {name(), collective_name(operation)}; }

  int64_t max_count_;
  Channel own_;
  Channel async_;
  MPI_Op bf16_sum_ = MPI_OP_NULL;
  MPI_Op bf16_max_ = MPI_OP_NULL;
  std::vector<Requests> spare_requests_;  // of messages that arrived, for those to come
  std::vector<MPI_Status> statuses_;
  std::vector<Exchange> messages_;  // of all_to_all
  CommunicationThread communication_;
};

}  // namespace phalanx
