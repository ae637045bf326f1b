// The public half of ProcessGroup: checks, traffic counters, and what a group of one does.
#include "parallel/process_group.h"

#include <chrono>
#include <cstring>
#include <numeric>

#include "kernels/base/flight_recorder.h"
#include "kernels/base/trace.h"

namespace phalanx {
namespace {

class CompletedWork final : public Work {
  void wait_impl() override {}
};

int64_t sum_of(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

/// The first rank that a message of another is expected from; -1 if none is.
int first_sender(std::span<const Exchange> messages, int rank) {
  for (const Exchange& message : messages)
    if (message.receive && message.peer != rank) return message.peer;
  return -1;
}

int64_t entry_numel(const Tensor& x) {
  return x.shape[0] == 0 ? 0 : x.numel() / x.shape[0];
}

}  // namespace

const char* collective_name(Collective operation) {
  constexpr const char* kNames[kNumCollectives] = {"all_reduce", "all_gather", "reduce_scatter",
                                                   "all_to_all", "broadcast",  "exchange",
                                                   "barrier"};
  return kNames[static_cast<size_t>(operation)];
}

/// Adds the time of its own life to the group's, and is a range of profiles and flight recorders.
class ProcessGroup::WaitingTime {
 public:
  WaitingTime(ProcessGroup& group, Collective operation, FlightKind kind, int64_t sequence,
              int peer = -1)
      : group_(group),
        flight_(kind, collective_name(operation), group.name(), sequence, peer),
        range_(group.range(operation), TraceLane::communication) {}
  ~WaitingTime() {
    group_.waiting_seconds_ +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }
  WaitingTime(const WaitingTime&) = delete;
  WaitingTime& operator=(const WaitingTime&) = delete;

 private:
  ProcessGroup& group_;
  FlightRange flight_;
  TraceRange range_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

void Work::wait() {
  if (group_ == nullptr) return wait_impl();
  const FlightKind kind =
      operation_ == Collective::exchange ? FlightKind::exchange_wait : FlightKind::wait;
  const ProcessGroup::WaitingTime waiting(*group_, operation_, kind, sequence_, peer_);
  wait_impl();
}

PendingWork completed_work() {
  return std::make_unique<CompletedWork>();
}

ProcessGroup::ProcessGroup(std::string name, int rank, int size, Backend* device_ops)
    : name_(std::move(name)),
      rank_(rank),
      size_(size),
      device_ops_(device_ops),
      equal_counts_(static_cast<size_t>(size)) {
  check(0 <= rank && rank < size, "group ", name_, ": rank ", rank, " is not one of ", size);
  for (size_t operation = 0; operation < range_names_.size(); ++operation)
    range_names_[operation] = name_ + " " + collective_name(static_cast<Collective>(operation));
}

const Traffic& ProcessGroup::traffic(Collective operation) const {
  return traffic_[static_cast<size_t>(operation)];
}

/// The call's number among the group's collectives, or among its exchanges.
int64_t ProcessGroup::count(Collective operation, int64_t bytes) {
  Traffic& traffic = traffic_[static_cast<size_t>(operation)];
  ++traffic.calls;
  traffic.bytes += bytes;
  return operation == Collective::exchange ? ++num_exchanges_ : ++num_collectives_;
}

PendingWork ProcessGroup::timed(PendingWork work, Collective operation, int64_t sequence,
                                int peer) {
  work->group_ = this;
  work->operation_ = operation;
  work->sequence_ = sequence;
  work->peer_ = peer;
  return work;
}

void ProcessGroup::check_counts(Collective operation, const Tensor& x,
                                std::span<const int64_t> counts) const {
  check(counts.size() == static_cast<size_t>(size_), "group ", name_, ": ",
        collective_name(operation), " got ", counts.size(), " counts for ", size_, " ranks");
  for (const int64_t n : counts)
    check(n >= 0, "group ", name_, ": ", collective_name(operation), " got a negative count ", n);
  check(sum_of(counts) == x.numel(), "group ", name_, ": ", collective_name(operation),
        " got counts that sum to ", sum_of(counts), " for ", x.numel(), " elements");
}

void ProcessGroup::copy_local(const Tensor& y, const Tensor& x) const {
  check(y.device == x.device && y.dtype == x.dtype, "group ", name_, " copies ",
        dtype_name(x.dtype), " on ", device_name(x.device), " to ", dtype_name(y.dtype), " on ",
        device_name(y.device));
  if (y.data == x.data || x.bytes() == 0 || x.data == nullptr) return;
  if (x.device == Device::cpu) {
    std::memmove(y.data, x.data, static_cast<size_t>(x.bytes()));
    return;
  }
  check(device_ops_ != nullptr, "group ", name_, " moves host memory only, got a tensor on ",
        device_name(x.device));
  device_ops_->copy(y, x);
}

void ProcessGroup::all_reduce(const Tensor& x, ReduceOp op) {
  check(x.dtype != DType::u8, "group ", name_, ": all_reduce has no sums of ", dtype_name(x.dtype));
  if (size_ == 1) return;
  const int64_t sequence = count(Collective::all_reduce, x.bytes());
  if (x.numel() == 0) return;
  const WaitingTime waiting(*this, Collective::all_reduce, FlightKind::collective, sequence);
  all_reduce_impl(x, op);
}

void ProcessGroup::all_gather(const Tensor& out, const Tensor& x) {
  check(out.numel() == size_ * x.numel() && out.dtype == x.dtype, "group ", name_,
        ": all_gather of ", x.numel(), " ", dtype_name(x.dtype), " elements from each of ", size_,
        " ranks does not give ", out.numel(), " ", dtype_name(out.dtype));
  const Tensor flat = out.view({out.numel()});
  copy_local(flat.slice(rank_ * x.numel(), (rank_ + 1) * x.numel()), x);
  equal_counts_.assign(equal_counts_.size(), x.numel());
  all_gather_in_place(flat, equal_counts_);
}

void ProcessGroup::all_gather_in_place(const Tensor& out, std::span<const int64_t> counts) {
  check_counts(Collective::all_gather, out, counts);
  if (size_ == 1) return;
  const int64_t sequence =
      count(Collective::all_gather, counts[static_cast<size_t>(rank_)] * dtype_bytes(out.dtype));
  if (out.numel() == 0) return;
  const WaitingTime waiting(*this, Collective::all_gather, FlightKind::collective, sequence);
  all_gather_impl(out, counts);
}

void ProcessGroup::reduce_scatter(const Tensor& out, const Tensor& x) {
  check(x.numel() == size_ * out.numel() && out.dtype == x.dtype, "group ", name_,
        ": reduce_scatter of ", x.numel(), " ", dtype_name(x.dtype), " elements over ", size_,
        " ranks does not give ", out.numel(), " ", dtype_name(out.dtype));
  const Tensor flat = x.view({x.numel()});
  equal_counts_.assign(equal_counts_.size(), out.numel());
  reduce_scatter_in_place(flat, equal_counts_);
  copy_local(out, flat.slice(rank_ * out.numel(), (rank_ + 1) * out.numel()));
}

void ProcessGroup::reduce_scatter_in_place(const Tensor& x, std::span<const int64_t> counts) {
  check_counts(Collective::reduce_scatter, x, counts);
  if (size_ == 1) return;
  const int64_t sequence = count(Collective::reduce_scatter, x.bytes());
  if (x.numel() == 0) return;
  const WaitingTime waiting(*this, Collective::reduce_scatter, FlightKind::collective, sequence);
  reduce_scatter_impl(x, counts);
}

void ProcessGroup::all_to_all(const Tensor& out, const Tensor& x,
                              std::span<const int64_t> send_counts,
                              std::span<const int64_t> receive_counts) {
  const auto ranks = static_cast<size_t>(size_);
  check(send_counts.size() == ranks && receive_counts.size() == ranks, "group ", name_,
        ": all_to_all got ", send_counts.size(), " and ", receive_counts.size(), " counts for ",
        size_, " ranks");
  check(sum_of(send_counts) == x.shape[0] && sum_of(receive_counts) == out.shape[0], "group ",
        name_, ": all_to_all counts sum to ", sum_of(send_counts), " and ", sum_of(receive_counts),
        " for ", x.shape[0], " rows sent and ", out.shape[0], " received");
  check(out.dtype == x.dtype &&
            (x.shape[0] == 0 || out.shape[0] == 0 || entry_numel(x) == entry_numel(out)),
        "group ", name_, ": all_to_all needs rows of one size and dtype on both sides");
  if (size_ == 1) {
    copy_local(out, x);
    return;
  }
  const int64_t sequence = count(Collective::all_to_all, x.bytes());
  const WaitingTime waiting(*this, Collective::all_to_all, FlightKind::collective, sequence);
  all_to_all_impl(out, x, send_counts, receive_counts);
}

void ProcessGroup::broadcast(const Tensor& x, int root) {
  check(0 <= root && root < size_, "group ", name_, ": broadcast from rank ", root, " of ", size_);
  if (size_ == 1) return;
  const int64_t sequence = count(Collective::broadcast, rank_ == root ? x.bytes() : 0);
  if (x.numel() == 0) return;
  const WaitingTime waiting(*this, Collective::broadcast, FlightKind::collective, sequence);
  broadcast_impl(x, root);
}

void ProcessGroup::exchange(std::span<const Exchange> messages) {
  exchange_async(messages)->wait();
}

/// Bytes that leave this rank.
int64_t ProcessGroup::check_messages(std::span<const Exchange> messages) const {
  int64_t bytes = 0;
  for (const Exchange& message : messages) {
    check(0 <= message.peer && message.peer < size_, "group ", name_, ": exchange with rank ",
          message.peer, " of ", size_);
    check(0 <= message.channel && message.channel <= kMaxChannel, "group ", name_,
          ": exchange on channel ", message.channel, "; channels go from 0 to ", kMaxChannel);
    if (message.peer == rank_) {
      check(message.send && message.receive && message.send.bytes() == message.receive.bytes(),
            "group ", name_, ": a message to oneself needs both tensors, of one size");
    } else if (message.send) {
      bytes += message.send.bytes();
    }
  }
  return bytes;
}

void ProcessGroup::barrier() {
  if (size_ == 1) return;
  const int64_t sequence = count(Collective::barrier, 0);
  const WaitingTime waiting(*this, Collective::barrier, FlightKind::collective, sequence);
  barrier_impl();
}

void ProcessGroup::open_channels(std::span<const ChannelEnd> ends) {
  for (const ChannelEnd& end : ends)
    check(0 <= end.peer && end.peer < size_ && 0 <= end.channel && end.channel <= kMaxChannel,
          "group ", name_, ": channel ", end.channel, " with rank ", end.peer, " of ", size_);
  if (size_ > 1) open_channels_impl(ends);
}

PendingWork ProcessGroup::reduce_scatter_in_place_async(const Tensor& x,
                                                        std::span<const int64_t> counts) {
  check_counts(Collective::reduce_scatter, x, counts);
  if (size_ == 1) return completed_work();
  const int64_t sequence = count(Collective::reduce_scatter, x.bytes());
  const FlightRange entered(FlightKind::collective, "reduce_scatter", name_, sequence, -1);
  return timed(reduce_scatter_async_impl(x, counts), Collective::reduce_scatter, sequence);
}

PendingWork ProcessGroup::all_gather_in_place_async(const Tensor& out,
                                                    std::span<const int64_t> counts) {
  check_counts(Collective::all_gather, out, counts);
  if (size_ == 1) return completed_work();
  const int64_t sequence =
      count(Collective::all_gather, counts[static_cast<size_t>(rank_)] * dtype_bytes(out.dtype));
  const FlightRange entered(FlightKind::collective, "all_gather", name_, sequence, -1);
  return timed(all_gather_async_impl(out, counts), Collective::all_gather, sequence);
}

PendingWork ProcessGroup::exchange_async(std::span<const Exchange> messages) {
  const int64_t bytes = check_messages(messages);
  for (const Exchange& message : messages)
    if (message.peer == rank_) copy_local(message.receive, message.send);
  if (size_ == 1) return completed_work();
  const int64_t sequence = count(Collective::exchange, bytes);
  const int peer = first_sender(messages, rank_);
  const FlightRange entered(FlightKind::exchange, "exchange", name_, sequence, peer);
  return timed(exchange_async_impl(messages), Collective::exchange, sequence, peer);
}

double ProcessGroup::all_reduce(double value, ReduceOp op) {
  all_reduce(cpu_tensor(&value, {1}), op);
  return value;
}

int64_t ProcessGroup::all_reduce(int64_t value, ReduceOp op) {
  all_reduce(cpu_tensor(&value, {1}), op);
  return value;
}

}  // namespace phalanx
