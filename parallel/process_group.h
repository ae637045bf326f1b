// ProcessGroup: collectives on tensors among the ranks of one mesh axis.
//
// Public functions check shapes, count bytes and calls, and do nothing in a group of one; private
// virtual `_impl` communicates. Implementations: MPI, and threads of one process (tests), for host
// memory; for a device's memory NCCL, and either of the former with host staging. Work is ordered
// with the calling thread's program order and, on device tensors, with the backend's ops: nobody
// synchronises around a collective. All ranks of a group call collectives in the same order, while
// an exchange concerns its two ends only. One thread per rank calls.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace phalanx {

enum class ReduceOp : uint8_t { sum, max };

enum class Collective : uint8_t {
  all_reduce,
  all_gather,
  reduce_scatter,
  all_to_all,
  broadcast,
  exchange,
  barrier
};
inline constexpr int kNumCollectives = 7;
/// "all_reduce", ...
const char* collective_name(Collective operation);

/// Calls made and payload bytes this rank handed in (all_reduce, reduce_scatter, broadcast root,
/// all_to_all, exchange sends) or contributed (all_gather), per operation. Groups of one count 0.
struct Traffic {
  int64_t calls = 0;
  int64_t bytes = 0;
};

class ProcessGroup;

/// A collective under way. After `wait` the host sees the result in host tensors, and the backend's
/// further ops see it in device tensors; it rethrows the collective's failure. It must be called
/// once, within the group's life, before the buffers are touched or freed.
class Work {
 public:
  virtual ~Work() = default;
  void wait();

 private:
  friend class ProcessGroup;
  virtual void wait_impl() = 0;
  ProcessGroup* group_ = nullptr;  // that has handed the work out, and what it was there
  Collective operation_ = Collective::barrier;
  int64_t sequence_ = 0;
  int peer_ = -1;
};
using PendingWork = std::unique_ptr<Work>;

/// Work of which nothing is left to do.
PendingWork completed_work();

/// One message of `exchange`. `peer` is a rank of the group; an absent tensor means nothing goes
/// that way. Messages of one channel between two ranks arrive in the order they were sent; channels
/// (0 to kMaxChannel) do not wait for each other. A message to oneself has both tensors and is
/// copied.
struct Exchange {
  int peer = 0;
  Tensor send;
  Tensor receive;
  int channel = 0;
};
inline constexpr int kMaxChannel = 32766;  // MPI promises tags up to 32767; one is all_to_all's

/// One direction of a channel between this rank and `peer`, as `open_channels` takes it.
struct ChannelEnd {
  int peer = 0;
  int channel = 0;
  bool sends = false;
};

class ProcessGroup {
 public:
  /// `device_ops` copies device tensors within this rank; without it the group takes host tensors
  /// only.
  ProcessGroup(std::string name, int rank, int size, Backend* device_ops = nullptr);
  virtual ~ProcessGroup() = default;
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  const std::string& name() const { return name_; }  // "tp", "dp_cp", ...; used in every message
  int rank() const { return rank_; }
  int size() const { return size_; }
  const Traffic& traffic(Collective operation) const;
  /// Exposed communication time: what the calling thread has spent inside collectives that block
  /// and inside `wait` of this group's asynchronous work. Groups of one wait 0 s.
  double waiting_seconds() const { return waiting_seconds_; }

  /// In place: x = reduce over ranks of x. f64, f32, bf16 (summed in f32), i64, i32.
  void all_reduce(const Tensor& x, ReduceOp op);
  /// out [size * n, ...] = the ranks' x [n, ...] one after the other.
  void all_gather(const Tensor& out, const Tensor& x);
  /// out (flat) = the ranks' pieces, rank r's having counts[r] elements; this rank's piece is
  /// already in place in `out`.
  void all_gather_in_place(const Tensor& out, std::span<const int64_t> counts);
  /// out [n, ...] = this rank's piece of the sum over ranks of x [size * n, ...]. x is used up: its
  /// contents are undefined afterwards.
  void reduce_scatter(const Tensor& out, const Tensor& x);
  /// In place on flat x: after it, this rank's piece (counts[rank()] elements at the sum of the
  /// counts before) holds the sum over ranks; the rest of x is undefined.
  void reduce_scatter_in_place(const Tensor& x, std::span<const int64_t> counts);
  /// out = pieces received in rank order; send_counts / receive_counts in rows of the outermost
  /// dim.
  void all_to_all(const Tensor& out, const Tensor& x, std::span<const int64_t> send_counts,
                  std::span<const int64_t> receive_counts);
  void broadcast(const Tensor& x, int root);
  /// All messages at once, in any order between ranks, without deadlock. Only the two ends of a
  /// message take part in it.
  void exchange(std::span<const Exchange> messages);
  /// Host only: all ranks have called it.
  void barrier();

  /// Says which channels will carry messages of device tensors while others wait. Collective, with
  /// every end of every channel said by its own rank. MPI needs none of it; NCCL has no tags, so
  /// that each channel becomes a communicator, and channels nobody opened share one: there each
  /// call of `exchange` ends before the next begins, and both directions belong into one call.
  void open_channels(std::span<const ChannelEnd> ends);

  /// As above, returning at once. The tensors stay in use until `wait`.
  [[nodiscard]] PendingWork reduce_scatter_in_place_async(const Tensor& x,
                                                          std::span<const int64_t> counts);
  [[nodiscard]] PendingWork all_gather_in_place_async(const Tensor& out,
                                                      std::span<const int64_t> counts);
  [[nodiscard]] PendingWork exchange_async(std::span<const Exchange> messages);

  /// Host scalars.
  double all_reduce(double value, ReduceOp op);
  int64_t all_reduce(int64_t value, ReduceOp op);

 protected:
  /// y = x within this rank.
  void copy_local(const Tensor& y, const Tensor& x) const;

 private:
  friend class Work;
  virtual void all_reduce_impl(const Tensor& x, ReduceOp op) = 0;
  virtual void all_gather_impl(const Tensor& out, std::span<const int64_t> counts) = 0;
  virtual void reduce_scatter_impl(const Tensor& x, std::span<const int64_t> counts) = 0;
  virtual void all_to_all_impl(const Tensor& out, const Tensor& x,
                               std::span<const int64_t> send_counts,
                               std::span<const int64_t> receive_counts) = 0;
  virtual void broadcast_impl(const Tensor& x, int root) = 0;
  /// Messages to other ranks; those to oneself are in the list too and to be left out.
  virtual PendingWork exchange_async_impl(std::span<const Exchange> messages) = 0;
  virtual void barrier_impl() = 0;
  virtual void open_channels_impl(std::span<const ChannelEnd>) {}
  virtual PendingWork reduce_scatter_async_impl(const Tensor& x,
                                                std::span<const int64_t> counts) = 0;
  virtual PendingWork all_gather_async_impl(const Tensor& out, std::span<const int64_t> counts) = 0;
  class WaitingTime;
  int64_t count(Collective operation, int64_t bytes);
  void check_counts(Collective operation, const Tensor& x, std::span<const int64_t> counts) const;
  int64_t check_messages(std::span<const Exchange> messages) const;
  PendingWork timed(PendingWork work, Collective operation, int64_t sequence, int peer = -1);
  const char* range(Collective operation) const {
    return range_names_[static_cast<size_t>(operation)].c_str();
  }

  std::string name_;
  int rank_;
  int size_;
  Backend* device_ops_;
  std::array<Traffic, kNumCollectives> traffic_{};
  double waiting_seconds_ = 0;
  int64_t num_collectives_ = 0;  // entered, all kinds; exchanges apart, for not all ranks make them
  int64_t num_exchanges_ = 0;
  std::array<std::string, kNumCollectives> range_names_;  // "tp all_reduce", for profiles
  std::vector<int64_t> equal_counts_;                     // kept, so that no call allocates
};

}  // namespace phalanx
