// Collectives as NCCL calls.
#include "parallel/nccl/nccl_process_group.h"

#include <algorithm>

namespace phalanx {
namespace {

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return ncclFloat64;
    case DType::f32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::i64:
      return ncclInt64;
    case DType::i32:
      return ncclInt32;
    case DType::u8:
      return ncclUint8;
  }
  return ncclUint8;
}

ncclRedOp_t nccl_operation(ReduceOp op) {
  return op == ReduceOp::sum ? ncclSum : ncclMax;
}

size_t count_of(const Tensor& x) {
  return static_cast<size_t>(x.numel());
}

char* element(const Tensor& x, int64_t index) {
  return static_cast<char*>(x.data) + index * dtype_bytes(x.dtype);
}

bool all_equal(std::span<const int64_t> counts) {
  return std::ranges::all_of(counts, [&](int64_t n) { return n == counts.front(); });
}

/// Calls body(rank, first element, count) for each piece that is not empty.
template <class Body>
void for_pieces(std::span<const int64_t> counts, Body&& body) {
  int64_t begin = 0;
  for (size_t rank = 0; rank < counts.size(); ++rank) {
    if (counts[rank] > 0) body(static_cast<int>(rank), begin, static_cast<size_t>(counts[rank]));
    begin += counts[rank];
  }
}

}  // namespace

NcclProcessGroup::NcclProcessGroup(std::unique_ptr<ProcessGroup> host,
                                   std::unique_ptr<NcclCommunicator> communicator,
                                   NcclMembers members, CudaBackend& backend)
    : ProcessGroup(host->name(), host->rank(), host->size(), &backend),
      host_(std::move(host)),
      members_(std::move(members)),
      communicator_(std::move(communicator)) {}

/// Also where a failure that the watchdog found comes out, so that a step whose sums are wrong ends
/// at its first host scalar.
bool NcclProcessGroup::goes_over_host(const Tensor& x) {
  communicator_->throw_if_failed();
  return x.device == Device::cpu;
}

void NcclProcessGroup::all_reduce_impl(const Tensor& x, ReduceOp op) {
  if (goes_over_host(x)) return host_->all_reduce(x, op);
  communicator_->finish_before_further_ops(
      communicator_->run("all_reduce", [&](ncclComm_t comm, cudaStream_t stream) {
        return ncclAllReduce(x.data, x.data, count_of(x), nccl_type(x.dtype), nccl_operation(op),
                             comm, stream);
      }));
}

// Pieces of different sizes are broadcasts of their owners, all in one NCCL group.
NcclCommunicator::Event NcclProcessGroup::start_all_gather(const Tensor& out, Counts counts) {
  return communicator_->run("all_gather", [&](ncclComm_t comm, cudaStream_t stream) {
    const ncclDataType_t type = nccl_type(out.dtype);
    if (all_equal(counts))
      return ncclAllGather(element(out, rank() * counts[0]), out.data,
                           static_cast<size_t>(counts[0]), type, comm, stream);
    return nccl_grouped([&](auto&& note) {
      for_pieces(counts, [&](int root, int64_t begin, size_t count) {
        note(ncclBroadcast(element(out, begin), element(out, begin), count, type, root, comm,
                           stream));
      });
    });
  });
}

// Pieces of different sizes are reductions to their owners.
NcclCommunicator::Event NcclProcessGroup::start_reduce_scatter(const Tensor& x, Counts counts) {
  return communicator_->run("reduce_scatter", [&](ncclComm_t comm, cudaStream_t stream) {
    const ncclDataType_t type = nccl_type(x.dtype);
    if (all_equal(counts))
      return ncclReduceScatter(x.data, element(x, rank() * counts[0]),
                               static_cast<size_t>(counts[0]), type, ncclSum, comm, stream);
    return nccl_grouped([&](auto&& note) {
      for_pieces(counts, [&](int root, int64_t begin, size_t count) {
        note(ncclReduce(element(x, begin), element(x, begin), count, type, ncclSum, root, comm,
                        stream));
      });
    });
  });
}

void NcclProcessGroup::all_gather_impl(const Tensor& out, Counts counts) {
  if (goes_over_host(out)) return host_->all_gather_in_place(out, counts);
  communicator_->finish_before_further_ops(start_all_gather(out, counts));
}

void NcclProcessGroup::reduce_scatter_impl(const Tensor& x, Counts counts) {
  if (goes_over_host(x)) return host_->reduce_scatter_in_place(x, counts);
  communicator_->finish_before_further_ops(start_reduce_scatter(x, counts));
}

PendingWork NcclProcessGroup::all_gather_async_impl(const Tensor& out, Counts counts) {
  if (goes_over_host(out)) return host_->all_gather_in_place_async(out, counts);
  auto work = std::make_unique<NcclWork>();
  if (out.numel() > 0) work->add(*communicator_, start_all_gather(out, counts));
  return work;
}

PendingWork NcclProcessGroup::reduce_scatter_async_impl(const Tensor& x, Counts counts) {
  if (goes_over_host(x)) return host_->reduce_scatter_in_place_async(x, counts);
  auto work = std::make_unique<NcclWork>();
  if (x.numel() > 0) work->add(*communicator_, start_reduce_scatter(x, counts));
  return work;
}

void NcclProcessGroup::broadcast_impl(const Tensor& x, int root) {
  if (goes_over_host(x)) return host_->broadcast(x, root);
  communicator_->finish_before_further_ops(
      communicator_->run("broadcast", [&](ncclComm_t comm, cudaStream_t stream) {
        return ncclBroadcast(x.data, x.data, count_of(x), nccl_type(x.dtype), root, comm, stream);
      }));
}

void NcclProcessGroup::all_to_all_impl(const Tensor& out, const Tensor& x, Counts send_counts,
                                       Counts receive_counts) {
  if (goes_over_host(x)) return host_->all_to_all(out, x, send_counts, receive_counts);
  const auto rows_before = [this](Counts counts) {
    int64_t rows = 0;
    for (int peer = 0; peer < rank(); ++peer) rows += counts[static_cast<size_t>(peer)];
    return rows;
  };
  const auto self = static_cast<size_t>(rank());
  check(send_counts[self] == receive_counts[self], "group ", name(), ": all_to_all sends ",
        send_counts[self], " rows to itself and expects ", receive_counts[self]);
  const int64_t sent = rows_before(send_counts);
  const int64_t received = rows_before(receive_counts);
  copy_local(out.slice(received, received + receive_counts[self]),
             x.slice(sent, sent + send_counts[self]));
  const auto start = [&](ncclComm_t comm, cudaStream_t stream) {
    return nccl_grouped([&](auto&& note) {
      const int64_t send_width = x.shape[0] == 0 ? 0 : x.numel() / x.shape[0];
      const int64_t receive_width = out.shape[0] == 0 ? 0 : out.numel() / out.shape[0];
      for_pieces(send_counts, [&](int peer, int64_t begin, size_t rows) {
        if (peer != rank() && send_width > 0)
          note(ncclSend(element(x, begin * send_width), rows * static_cast<size_t>(send_width),
                        nccl_type(x.dtype), peer, comm, stream));
      });
      for_pieces(receive_counts, [&](int peer, int64_t begin, size_t rows) {
        if (peer != rank() && receive_width > 0)
          note(ncclRecv(element(out, begin * receive_width),
                        rows * static_cast<size_t>(receive_width), nccl_type(out.dtype), peer, comm,
                        stream));
      });
    });
  };
  communicator_->finish_before_further_ops(communicator_->run("all_to_all", start));
}

void NcclProcessGroup::barrier_impl() {
  communicator_->throw_if_failed();
  host_->barrier();
}

}  // namespace phalanx
