// Collectives over MPI. Reductions use MPI's own algorithms, whose order depends on sizes and ranks
// only, never on timing, so that results are the same bits on every run.
#include "parallel/mpi_process_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <numeric>

#include "kernels/base/log.h"
#include "parallel/process_groups.h"

namespace phalanx {
namespace {

MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return MPI_DOUBLE;
    case DType::f32:
      return MPI_FLOAT;
    case DType::bf16:
      return MPI_UINT16_T;  // its sums go through the group's own operations
    case DType::i64:
      return MPI_INT64_T;
    case DType::i32:
      return MPI_INT32_T;
    case DType::u8:
      return MPI_UINT8_T;
  }
  return MPI_DATATYPE_NULL;
}

// Pairs are added in f32 and rounded: MPI has no bf16 of its own.
void add_bf16(void* in, void* inout, int* count, MPI_Datatype*) {
  const auto* x = static_cast<const BFloat16*>(in);
  auto* sum = static_cast<BFloat16*>(inout);
  for (int i = 0; i < *count; ++i)
    sum[i] = BFloat16(static_cast<float>(sum[i]) + static_cast<float>(x[i]));
}

void max_bf16(void* in, void* inout, int* count, MPI_Datatype*) {
  const auto* x = static_cast<const BFloat16*>(in);
  auto* most = static_cast<BFloat16*>(inout);
  for (int i = 0; i < *count; ++i)
    most[i] = BFloat16(std::max(static_cast<float>(most[i]), static_cast<float>(x[i])));
}

char* element(const Tensor& x, int64_t index) {
  return static_cast<char*>(x.data) + index * dtype_bytes(x.dtype);
}

/// Elements [begin, begin + count) of a flat view of x.
Tensor part_of(const Tensor& x, int64_t begin, int64_t count) {
  return {element(x, begin), {count}, x.dtype, x.device};
}

// Messages that several calls have under way at once keep apart by their tags.
constexpr int kAllToAllTag = 0;
constexpr int kFirstChannelTag = 1;

bool mpi_is_up() {
  int initialised = 0;
  int finalised = 0;
  MPI_Initialized(&initialised);
  MPI_Finalized(&finalised);
  return initialised != 0 && finalised == 0;
}

}  // namespace

void mpi_check(int code, const MpiCall& call, std::source_location where) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  detail::throw_error(fmt::format("group {}: {} failed in MPI: {}", call.group, call.operation,
                                  std::string_view(text, static_cast<size_t>(length))),
                      where);
}

MpiSession::MpiSession(int* argc, char*** argv) {
  const std::string world = "MPI_COMM_WORLD";
  int provided = 0;
  mpi_check(MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &provided), {world, "MPI_Init"});
  mpi_check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), {world, "errhandler"});
  check(provided == MPI_THREAD_MULTIPLE,
        "this MPI library does not give MPI_THREAD_MULTIPLE, which the communication threads need; "
        "use an MPI library built with thread support");
  mpi_check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), {world, "rank"});
  mpi_check(MPI_Comm_size(MPI_COMM_WORLD, &size_), {world, "size"});
}

// Not while an exception unwinds: MPI_Finalize would wait for ranks that never come. `main` aborts.
MpiSession::~MpiSession() {
  if (std::uncaught_exceptions() == 0) MPI_Finalize();
}

void MpiSession::abort(int exit_code) {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

MpiProcessGroup::MpiProcessGroup(std::string name, MPI_Comm communicator, int64_t max_count)
    : ProcessGroup(
          std::move(name),
          [&] {
            int r = 0;
            MPI_Comm_rank(communicator, &r);
            return r;
          }(),
          [&] {
            int n = 1;
            MPI_Comm_size(communicator, &n);
            return n;
          }()),
      max_count_(max_count) {
  const MpiCall made{this->name(), "creation"};
  check(1 <= max_count && max_count <= kMaxCount, "group ", this->name(), ": pieces of ", max_count,
        " elements");
  own_.communicator = communicator;
  mpi_check(MPI_Comm_set_errhandler(own_.communicator, MPI_ERRORS_RETURN), made);
  mpi_check(MPI_Comm_dup(own_.communicator, &async_.communicator), made);
  mpi_check(MPI_Comm_set_errhandler(async_.communicator, MPI_ERRORS_RETURN), made);
  mpi_check(MPI_Op_create(add_bf16, 1, &bf16_sum_), made);
  mpi_check(MPI_Op_create(max_bf16, 1, &bf16_max_), made);
}

MpiProcessGroup::~MpiProcessGroup() {
  if (!communication_.idle()) {
    log_line("group " + name() + " ends with a collective under way; its peers will not come");
    communication_.abandon();
    return;
  }
  // Freeing is collective, so a rank that fails leaves it to the end of the process.
  if (std::uncaught_exceptions() > 0 || !mpi_is_up()) return;
  MPI_Op_free(&bf16_sum_);
  MPI_Op_free(&bf16_max_);
  MPI_Comm_free(&async_.communicator);
  MPI_Comm_free(&own_.communicator);
}

MPI_Op MpiProcessGroup::operation_for(DType dtype, ReduceOp op) const {
  if (dtype == DType::bf16) return op == ReduceOp::sum ? bf16_sum_ : bf16_max_;
  return op == ReduceOp::sum ? MPI_SUM : MPI_MAX;
}

/// Calls body(pointer, count) for pieces of at most max_count_ elements.
template <class Body>
void MpiProcessGroup::for_pieces(const Tensor& x, Body&& body) const {
  for (int64_t begin = 0; begin < x.numel(); begin += max_count_)
    body(element(x, begin), static_cast<int>(std::min(max_count_, x.numel() - begin)));
}

void MpiProcessGroup::set_counts(Channel& channel, Counts counts) const {
  channel.counts.resize(counts.size());
  channel.displacements.resize(counts.size());
  int64_t displacement = 0;
  for (size_t rank = 0; rank < counts.size(); ++rank) {
    channel.counts[rank] = static_cast<int>(counts[rank]);
    channel.displacements[rank] = static_cast<int>(displacement);
    displacement += counts[rank];
  }
}

void MpiProcessGroup::all_reduce_impl(const Tensor& x, ReduceOp op) {
  for_pieces(x, [&](void* data, int count) {
    mpi_check(MPI_Allreduce(MPI_IN_PLACE, data, count, mpi_type(x.dtype),
                            operation_for(x.dtype, op), own_.communicator),
              call(Collective::all_reduce));
  });
}

void MpiProcessGroup::all_gather_impl(const Tensor& out, Counts counts) {
  all_gather_on(own_, out, counts);
}

// Beyond MPI's int, rank after rank broadcasts its piece.
void MpiProcessGroup::all_gather_on(Channel& channel, const Tensor& out, Counts counts) {
  const MpiCall made = call(Collective::all_gather);
  if (out.numel() <= max_count_) {
    set_counts(channel, counts);
    mpi_check(
        MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, out.data, channel.counts.data(),
                       channel.displacements.data(), mpi_type(out.dtype), channel.communicator),
        made);
    return;
  }
  int64_t begin = 0;
  for (int root = 0; root < size(); ++root) {
    const int64_t count = counts[static_cast<size_t>(root)];
    for_pieces(part_of(out, begin, count), [&](void* data, int piece) {
      mpi_check(MPI_Bcast(data, piece, mpi_type(out.dtype), root, channel.communicator), made);
    });
    begin += count;
  }
}

void MpiProcessGroup::reduce_scatter_impl(const Tensor& x, Counts counts) {
  reduce_scatter_on(own_, x, counts);
}

// In place MPI puts the result at the front of x, from where it moves to this rank's piece. Beyond
// MPI's int, each rank's piece is reduced to it in turn.
void MpiProcessGroup::reduce_scatter_on(Channel& channel, const Tensor& x, Counts counts) {
  const MpiCall made = call(Collective::reduce_scatter);
  const MPI_Op op = operation_for(x.dtype, ReduceOp::sum);
  if (x.numel() <= max_count_) {
    set_counts(channel, counts);
    mpi_check(MPI_Reduce_scatter(MPI_IN_PLACE, x.data, channel.counts.data(), mpi_type(x.dtype), op,
                                 channel.communicator),
              made);
    const auto self = static_cast<size_t>(rank());
    const Tensor piece = part_of(x, channel.displacements[self], counts[self]);
    if (counts[self] > 0) std::memmove(piece.data, x.data, static_cast<size_t>(piece.bytes()));
    return;
  }
  int64_t begin = 0;
  for (int root = 0; root < size(); ++root) {
    const int64_t count = counts[static_cast<size_t>(root)];
    for_pieces(part_of(x, begin, count), [&](void* data, int piece) {
      const bool mine = rank() == root;
      mpi_check(MPI_Reduce(mine ? MPI_IN_PLACE : data, mine ? data : nullptr, piece,
                           mpi_type(x.dtype), op, root, channel.communicator),
                made);
    });
    begin += count;
  }
}

// As messages, so that only the two ends need to agree on sizes and pieces.
void MpiProcessGroup::all_to_all_impl(const Tensor& out, const Tensor& x, Counts send_counts,
                                      Counts receive_counts) {
  messages_.clear();
  int64_t sent = 0;
  int64_t received = 0;
  for (int peer = 0; peer < size(); ++peer) {
    const int64_t num_sent = send_counts[static_cast<size_t>(peer)];
    const int64_t num_received = receive_counts[static_cast<size_t>(peer)];
    const Tensor send = x.slice(sent, sent + num_sent);
    const Tensor receive = out.slice(received, received + num_received);
    sent += num_sent;
    received += num_received;
    if (peer == rank()) {
      check(num_sent == num_received, "group ", name(), ": all_to_all sends ", num_sent,
            " rows to itself and expects ", num_received);
      if (send.bytes() > 0) std::memcpy(receive.data, send.data, static_cast<size_t>(send.bytes()));
    } else {
      messages_.push_back({peer, send, receive});
    }
  }
  Requests requests = post(messages_, kAllToAllTag);
  wait_all(requests, Collective::all_to_all);
  spare_requests_.push_back(std::move(requests));
}

void MpiProcessGroup::broadcast_impl(const Tensor& x, int root) {
  for_pieces(x, [&](void* data, int count) {
    mpi_check(MPI_Bcast(data, count, mpi_type(x.dtype), root, own_.communicator),
              call(Collective::broadcast));
  });
}

// Messages of one tag between two ranks keep their order, in pieces too.
MpiProcessGroup::Requests MpiProcessGroup::post(std::span<const Exchange> messages, int first_tag) {
  const MpiCall made = call(Collective::exchange);
  Requests requests;
  if (!spare_requests_.empty()) {
    requests = std::move(spare_requests_.back());
    spare_requests_.pop_back();
  }
  requests.clear();
  for (const Exchange& message : messages) {
    if (message.peer == rank() || !message.receive) continue;
    for_pieces(message.receive, [&](void* data, int count) {
      mpi_check(MPI_Irecv(data, count, mpi_type(message.receive.dtype), message.peer,
                          first_tag + message.channel, own_.communicator, &requests.emplace_back()),
                made);
    });
  }
  for (const Exchange& message : messages) {
    if (message.peer == rank() || !message.send) continue;
    for_pieces(message.send, [&](void* data, int count) {
      mpi_check(MPI_Isend(data, count, mpi_type(message.send.dtype), message.peer,
                          first_tag + message.channel, own_.communicator, &requests.emplace_back()),
                made);
    });
  }
  return requests;
}

void MpiProcessGroup::wait_all(Requests& requests, Collective operation) {
  const MpiCall made = call(operation);
  check(requests.size() <= static_cast<size_t>(kMaxCount), "group ", name(), ": too many messages");
  statuses_.resize(requests.size());
  const int code =
      MPI_Waitall(static_cast<int>(requests.size()), requests.data(), statuses_.data());
  // MPI's code only says that some message failed; the cause is in that message's status.
  for (const MPI_Status& status : statuses_)
    if (code == MPI_ERR_IN_STATUS && status.MPI_ERROR != MPI_ERR_PENDING)
      mpi_check(status.MPI_ERROR, made);
  mpi_check(code, made);
}

/// Messages under way. Work that is dropped belongs to a rank that fails and ends the job.
class MpiProcessGroup::MessageWork final : public Work {
 public:
  MessageWork(MpiProcessGroup& group, Requests requests)
      : group_(group), requests_(std::move(requests)) {}
  ~MessageWork() override {
    if (!waited_) log_line("group " + group_.name() + ": messages nobody waits for are dropped");
  }

 private:
  void wait_impl() override {
    waited_ = true;
    group_.wait_all(requests_, Collective::exchange);
    group_.spare_requests_.push_back(std::move(requests_));
  }

  MpiProcessGroup& group_;
  Requests requests_;
  bool waited_ = false;
};

PendingWork MpiProcessGroup::exchange_async_impl(std::span<const Exchange> messages) {
  return std::make_unique<MessageWork>(*this, post(messages, kFirstChannelTag));
}

void MpiProcessGroup::barrier_impl() {
  mpi_check(MPI_Barrier(own_.communicator), call(Collective::barrier));
}

PendingWork MpiProcessGroup::reduce_scatter_async_impl(const Tensor& x, Counts counts) {
  return communication_.submit([this, x, kept = std::vector(counts.begin(), counts.end())] {
    reduce_scatter_on(async_, x, kept);
  });
}

PendingWork MpiProcessGroup::all_gather_async_impl(const Tensor& out, Counts counts) {
  return communication_.submit([this, out, kept = std::vector(counts.begin(), counts.end())] {
    all_gather_on(async_, out, kept);
  });
}

ProcessGroups make_mpi_process_groups(const DeviceMesh& mesh) {
  const std::string world = "world";
  const MpiCall made{world, "creation"};
  int provided = MPI_THREAD_SINGLE;
  check(mpi_is_up(), "MPI is not initialised; make an MpiSession first");
  mpi_check(MPI_Query_thread(&provided), made);
  check(provided == MPI_THREAD_MULTIPLE, "MPI was not initialised with MPI_THREAD_MULTIPLE");
  int rank = 0;
  int size = 1;
  mpi_check(MPI_Comm_rank(MPI_COMM_WORLD, &rank), made);
  mpi_check(MPI_Comm_size(MPI_COMM_WORLD, &size), made);
  check(mesh.world_size() == size, "a mesh of ", mesh.world_size(), " ranks on ", size,
        " MPI ranks");
  return make_process_groups(
      mesh, rank, [&](const std::string& name, const std::vector<int64_t>& ranks) {
        // The first rank of a group is its colour: groups of one name do not overlap.
        MPI_Comm communicator = MPI_COMM_NULL;
        mpi_check(
            MPI_Comm_split(MPI_COMM_WORLD, static_cast<int>(ranks.front()), rank, &communicator),
            {name, "creation"});
        return std::make_unique<MpiProcessGroup>(name, communicator);
      });
}

}  // namespace phalanx
