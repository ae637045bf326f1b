// Messages between two ranks, over the communicators of their channels.
#include <algorithm>
#include <optional>

#include "parallel/nccl/nccl_process_group.h"

namespace phalanx {
namespace {

size_t bytes_of(const Tensor& x) {
  return static_cast<size_t>(x.bytes());
}

bool travels(const Tensor& x, Device device) {
  return x && x.device == device && x.bytes() > 0;
}

}  // namespace

/// One direction of one channel.
struct NcclProcessGroup::Edge {
  int source = 0;
  int destination = 0;
  int channel = 0;
  auto operator<=>(const Edge&) const = default;
};

/// All ranks' edges, each once, in an order that all ranks share.
std::vector<NcclProcessGroup::Edge> NcclProcessGroup::edges_of_all(
    std::span<const ChannelEnd> ends) {
  const auto most = host_->all_reduce(static_cast<int64_t>(ends.size()), ReduceOp::max);
  constexpr int64_t kFields = 3;
  constexpr int64_t kNone = -1;
  std::vector<int64_t> own(static_cast<size_t>(most * kFields), kNone);
  for (size_t i = 0; i < ends.size(); ++i) {
    const ChannelEnd& end = ends[i];
    own[i * kFields] = end.sends ? rank() : end.peer;
    own[i * kFields + 1] = end.sends ? end.peer : rank();
    own[i * kFields + 2] = end.channel;
  }
  std::vector<int64_t> all(own.size() * static_cast<size_t>(size()));
  host_->all_gather(cpu_tensor(all.data(), {size() * most * kFields}),
                    cpu_tensor(own.data(), {most * kFields}));
  std::vector<Edge> edges;
  for (size_t i = 0; i < all.size(); i += kFields)
    if (all[i] != kNone && all[i] != all[i + 1])
      edges.push_back(
          {static_cast<int>(all[i]), static_cast<int>(all[i + 1]), static_cast<int>(all[i + 2])});
  std::ranges::sort(edges);
  for (size_t i = 0; i < edges.size(); i += 2)
    check(i + 1 < edges.size() && edges[i] == edges[i + 1], "group ", name(), ": channel ",
          edges[i].channel, " from rank ", edges[i].source, " to rank ", edges[i].destination,
          " is opened by one of the two only, or twice");
  edges.erase(std::ranges::unique(edges).begin(), edges.end());
  return edges;
}

// Each split makes communicators of as many edges as have no rank in common, because a rank can be
// in one of them only.
void NcclProcessGroup::open_channels_impl(std::span<const ChannelEnd> ends) {
  std::vector<ChannelEnd> wanted;
  for (const ChannelEnd& end : ends)
    if (channel_of(end.peer, end.channel, end.sends) == nullptr) wanted.push_back(end);
  std::vector<Edge> edges = edges_of_all(wanted);
  while (!edges.empty()) {
    std::vector<char> busy(static_cast<size_t>(size()), 0);
    std::vector<Edge> later;
    std::optional<Edge> own;
    for (const Edge& edge : edges) {
      char& source = busy[static_cast<size_t>(edge.source)];
      char& destination = busy[static_cast<size_t>(edge.destination)];
      if (source != 0 || destination != 0) {
        later.push_back(edge);
        continue;
      }
      source = destination = 1;
      if (rank() == edge.source || rank() == edge.destination) own = edge;
    }
    edges = std::move(later);
    if (!own) {
      static_cast<void>(communicator_->split({}, NcclCommunicator::kNoColour));
      continue;
    }
    const bool sends = own->source == rank();
    const int peer = sends ? own->destination : own->source;
    const auto world_rank = [&](int r) { return members_.world_ranks[static_cast<size_t>(r)]; };
    NcclMembers pair{name() + " channel " + std::to_string(own->channel),
                     rank() < peer ? 0 : 1,
                     {world_rank(std::min(rank(), peer)), world_rank(std::max(rank(), peer))}};
    channels_[{peer, own->channel, own->source}] =
        communicator_->split(std::move(pair), std::min(rank(), peer));
  }
}

NcclCommunicator* NcclProcessGroup::channel_of(int peer, int channel, bool sends) {
  const auto found = channels_.find({peer, channel, sends ? rank() : peer});
  return found == channels_.end() ? nullptr : found->second.get();
}

// Messages of opened channels go on their own; all others of the call together, so that none waits
// for another.
PendingWork NcclProcessGroup::exchange_async_impl(std::span<const Exchange> messages) {
  communicator_->throw_if_failed();
  auto work = std::make_unique<NcclWork>();
  std::vector<Exchange> host;
  std::vector<Exchange> together;
  const auto start = [&](const Exchange& message, bool sends) {
    const Tensor& x = sends ? message.send : message.receive;
    if (travels(x, Device::cpu)) {
      host.push_back({message.peer, sends ? x : Tensor{}, sends ? Tensor{} : x, message.channel});
    } else if (NcclCommunicator* own = channel_of(message.peer, message.channel, sends);
               own != nullptr && travels(x, Device::cuda)) {
      const int other = rank() < message.peer ? 1 : 0;
      work->add(*own, own->run(sends ? "send" : "receive", [&](ncclComm_t comm, cudaStream_t s) {
        return sends ? ncclSend(x.data, bytes_of(x), ncclUint8, other, comm, s)
                     : ncclRecv(x.data, bytes_of(x), ncclUint8, other, comm, s);
      }));
    } else if (travels(x, Device::cuda)) {
      together.push_back({message.peer, sends ? x : Tensor{}, sends ? Tensor{} : x, 0});
    }
  };
  for (const Exchange& message : messages) {
    if (message.peer == rank()) continue;
    start(message, true);
    start(message, false);
  }
  if (!together.empty())
    work->add(
        *communicator_, communicator_->run("exchange", [&](ncclComm_t comm, cudaStream_t stream) {
          return nccl_grouped([&](auto&& note) {
            for (const Exchange& m : together)
              note(m.send ? ncclSend(m.send.data, bytes_of(m.send), ncclUint8, m.peer, comm, stream)
                          : ncclRecv(m.receive.data, bytes_of(m.receive), ncclUint8, m.peer, comm,
                                     stream));
          });
        }));
  if (!host.empty()) work->add_host(host_->exchange_async(host));
  return work;
}

}  // namespace phalanx
