// Download, communicate, upload.
#include "parallel/staged_process_group.h"

#include <algorithm>
#include <numeric>

namespace phalanx {
namespace {

bool on_host(const Tensor& x) {
  return x.device == Device::cpu;
}

/// `x` of the device, as it lies in host memory at `data`.
Tensor host_view(const Tensor& x, char* data) {
  return {data, x.shape, x.dtype, Device::cpu};
}

/// Bytes of a buffer that `x` takes, so that the next tensor is aligned again.
int64_t room_for(const Tensor& x) {
  if (!x || on_host(x)) return 0;
  constexpr int64_t kLine = 64;
  return (x.bytes() + kLine - 1) / kLine * kLine;
}

/// Elements of `x`, which are flat, and of its host copy.
struct Upload {
  Tensor device;
  const void* host = nullptr;
};

}  // namespace

/// The host group's work, and what its `wait` uploads. The buffer is held until then; if the work
/// is dropped, its rank fails, and the host group sees to the work under way first (members are
/// destroyed from the last to the first).
class StagedProcessGroup::StagedWork final : public Work {
 public:
  StagedWork(Backend& ops, Buffer buffer) : ops_(ops), buffer_(std::move(buffer)) {}
  void add(const Tensor& device, const void* host) {
    if (device.numel() > 0) uploads_.push_back({device, host});
  }
  void start(PendingWork work) { work_ = std::move(work); }

 private:
  void wait_impl() override {
    work_->wait();
    for (const Upload& upload : uploads_) ops_.upload(upload.device, upload.host);
    buffer_.reset();
  }

  Backend& ops_;
  Buffer buffer_;
  std::vector<Upload> uploads_;
  PendingWork work_;
};

StagedProcessGroup::StagedProcessGroup(std::unique_ptr<ProcessGroup> host, Backend& backend)
    : ProcessGroup(host->name(), host->rank(), host->size(), &backend),
      ops_(backend),
      host_(std::move(host)) {}

StagedProcessGroup::~StagedProcessGroup() = default;

// The smallest free buffer that is large enough, else the largest free one grows: as many buffers
// as calls are under way at once, none larger than the largest message.
StagedProcessGroup::Buffer StagedProcessGroup::buffer(int64_t bytes) {
  Buffer* best = nullptr;
  const auto size = static_cast<size_t>(bytes);
  for (Buffer& candidate : buffers_) {
    if (candidate.use_count() > 1) continue;
    const bool fits = candidate->size() >= size;
    if (best == nullptr || (fits ? (*best)->size() < size || candidate->size() < (*best)->size()
                                 : (*best)->size() < size && candidate->size() > (*best)->size()))
      best = &candidate;
  }
  if (best == nullptr) best = &buffers_.emplace_back(std::make_shared<std::vector<char>>());
  if ((*best)->size() < size) {
    (*best)->clear();  // nothing to copy when it moves
    (*best)->resize(size);
  }
  return *best;
}

Tensor StagedProcessGroup::own_piece(const Tensor& x, Counts counts) const {
  const int64_t begin = std::accumulate(counts.begin(), counts.begin() + rank(), int64_t{0});
  return x.view({x.numel()}).slice(begin, begin + counts[static_cast<size_t>(rank())]);
}

void StagedProcessGroup::all_reduce_impl(const Tensor& x, ReduceOp op) {
  if (on_host(x)) return host_->all_reduce(x, op);
  const Buffer kept = buffer(x.bytes());
  const Tensor copy = host_view(x, kept->data());
  ops_.download(copy.data, x);
  host_->all_reduce(copy, op);
  ops_.upload(x, copy.data);
}

void StagedProcessGroup::all_gather_impl(const Tensor& out, Counts counts) {
  if (on_host(out)) return host_->all_gather_in_place(out, counts);
  all_gather_async_impl(out, counts)->wait();
}

void StagedProcessGroup::reduce_scatter_impl(const Tensor& x, Counts counts) {
  if (on_host(x)) return host_->reduce_scatter_in_place(x, counts);
  reduce_scatter_async_impl(x, counts)->wait();
}

void StagedProcessGroup::all_to_all_impl(const Tensor& out, const Tensor& x, Counts send_counts,
                                         Counts receive_counts) {
  if (on_host(x)) return host_->all_to_all(out, x, send_counts, receive_counts);
  const Buffer kept = buffer(room_for(x) + room_for(out));
  const Tensor sent = host_view(x, kept->data());
  const Tensor received = host_view(out, kept->data() + room_for(x));
  if (x.numel() > 0) ops_.download(sent.data, x);
  host_->all_to_all(received, sent, send_counts, receive_counts);
  if (out.numel() > 0) ops_.upload(out, received.data);
}

void StagedProcessGroup::broadcast_impl(const Tensor& x, int root) {
  if (on_host(x)) return host_->broadcast(x, root);
  const Buffer kept = buffer(x.bytes());
  const Tensor copy = host_view(x, kept->data());
  if (rank() == root) ops_.download(copy.data, x);
  host_->broadcast(copy, root);
  if (rank() != root) ops_.upload(x, copy.data);
}

PendingWork StagedProcessGroup::reduce_scatter_async_impl(const Tensor& x, Counts counts) {
  if (on_host(x)) return host_->reduce_scatter_in_place_async(x, counts);
  const Buffer kept = buffer(x.bytes());
  const Tensor copy = host_view(x.view({x.numel()}), kept->data());
  auto work = std::make_unique<StagedWork>(ops_, kept);
  if (x.numel() > 0) ops_.download(copy.data, x);
  work->add(own_piece(x, counts), own_piece(copy, counts).data);
  work->start(host_->reduce_scatter_in_place_async(copy, counts));
  return work;
}

PendingWork StagedProcessGroup::all_gather_async_impl(const Tensor& out, Counts counts) {
  if (on_host(out)) return host_->all_gather_in_place_async(out, counts);
  const Buffer kept = buffer(out.bytes());
  const Tensor flat = out.view({out.numel()});
  const Tensor copy = host_view(flat, kept->data());
  auto work = std::make_unique<StagedWork>(ops_, kept);
  const Tensor own = own_piece(copy, counts);
  if (own.numel() > 0) ops_.download(own.data, own_piece(out, counts));
  const int64_t begin = std::accumulate(counts.begin(), counts.begin() + rank(), int64_t{0});
  const int64_t end = begin + own.numel();
  work->add(flat.slice(0, begin), copy.data);
  work->add(flat.slice(end, flat.numel()), copy.slice(end, flat.numel()).data);
  work->start(host_->all_gather_in_place_async(copy, counts));
  return work;
}

// Messages of host tensors are in the same call, so that those of one channel keep their order.
PendingWork StagedProcessGroup::exchange_async_impl(std::span<const Exchange> messages) {
  int64_t bytes = 0;
  for (const Exchange& message : messages)
    if (message.peer != rank()) bytes += room_for(message.send) + room_for(message.receive);
  const Buffer kept = buffer(bytes);
  auto work = std::make_unique<StagedWork>(ops_, kept);
  std::vector<Exchange> staged;
  char* free = kept->data();
  const auto stage = [&](const Tensor& x) {
    if (!x || on_host(x)) return x;
    const Tensor copy = host_view(x, free);
    free += room_for(x);
    return copy;
  };
  for (const Exchange& message : messages) {
    if (message.peer == rank()) continue;
    const Tensor send = stage(message.send);
    const Tensor receive = stage(message.receive);
    if (message.send && !on_host(message.send)) ops_.download(send.data, message.send);
    if (message.receive && !on_host(message.receive)) work->add(message.receive, receive.data);
    staged.push_back({message.peer, send, receive, message.channel});
  }
  work->start(host_->exchange_async(staged));
  return work;
}

ProcessGroups staged(ProcessGroups groups, Backend& backend) {
  for (std::unique_ptr<ProcessGroup>* group : all_of(groups))
    *group = std::make_unique<StagedProcessGroup>(std::move(*group), backend);
  return groups;
}

}  // namespace phalanx
