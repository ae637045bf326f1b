// Collectives of thread ranks: every rank posts what it has, all meet, each computes its own result
// from the others' memory, all meet again.
#include "parallel/thread_process_group.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <numeric>
#include <thread>
#include <utility>

namespace phalanx {
namespace {

int64_t hash_of(std::span<const int64_t> counts) {
  int64_t hash = 0;
  for (const int64_t n : counts) hash = static_cast<int64_t>(static_cast<uint64_t>(hash) * 31U) + n;
  return hash;
}

int64_t offset_of(std::span<const int64_t> counts, size_t rank) {
  return std::accumulate(counts.begin(), counts.begin() + static_cast<ptrdiff_t>(rank), int64_t{0});
}

char* element(const Tensor& x, int64_t index) {
  return static_cast<char*>(x.data) + index * dtype_bytes(x.dtype);
}

void copy_bytes(void* target, const void* source, int64_t bytes) {
  if (bytes > 0) std::memcpy(target, source, static_cast<size_t>(bytes));
}

template <class Body>
void dispatch_reducible(DType dtype, Body&& body) {
  if (dtype == DType::i64) {
    body.template operator()<int64_t, int64_t>();
  } else if (dtype == DType::i32) {
    body.template operator()<int32_t, int32_t>();
  } else {
    dispatch_float(dtype, [&]<class T>() { body.template operator()<T, Accumulator<T>>(); });
  }
}

/// Elements [begin, end) reduced over all ranks in rank order.
std::vector<char> reduced(const std::vector<PostedCall>& posted, int64_t begin, int64_t end,
                          ReduceOp op) {
  std::vector<char> result;
  dispatch_reducible(posted[0].tensor.dtype, [&]<class T, class Sum>() {
    std::vector<Sum> sums(static_cast<size_t>(end - begin));
    for (size_t rank = 0; rank < posted.size(); ++rank) {
      const T* x = posted[rank].tensor.as<T>() + begin;
      for (size_t i = 0; i < sums.size(); ++i) {
        const Sum value = static_cast<Sum>(x[i]);
        if (rank == 0) {
          sums[i] = value;
        } else {
          sums[i] = op == ReduceOp::sum ? sums[i] + value : std::max(sums[i], value);
        }
      }
    }
    std::vector<T> rounded(sums.begin(), sums.end());
    result.resize(rounded.size() * sizeof(T));
    copy_bytes(result.data(), rounded.data(), static_cast<int64_t>(result.size()));
  });
  return result;
}

/// Posts, meets, checks that all ranks called the same, lets `body` read what is posted, and meets
/// again so that nobody's memory changes while another still reads it.
template <class Body>
void with_posted(ThreadProcessGroup& group, const std::shared_ptr<ThreadWorld>& world,
                 ThreadMeetingPoint& point, const PostedCall& own, Body&& body) {
  point.posted[static_cast<size_t>(group.rank())] = own;
  world->meet(point, group.name());
  for (size_t rank = 0; rank < point.posted.size(); ++rank) {
    const PostedCall& other = point.posted[rank];
    check(other.operation == own.operation && other.agreement == own.agreement &&
              other.tensor.dtype == own.tensor.dtype,
          "group ", group.name(), ": rank ", group.rank(), " calls ",
          collective_name(own.operation), " (", dtype_name(own.tensor.dtype), ", ", own.agreement,
          ") while rank ", rank, " calls ", collective_name(other.operation), " (",
          dtype_name(other.tensor.dtype), ", ", other.agreement,
          "); all ranks must call the same in the same order");
  }
  std::exception_ptr failure;
  try {
    body(std::as_const(point.posted));
  } catch (...) {
    failure = std::current_exception();
  }
  world->meet_again(point);
  if (failure) std::rethrow_exception(failure);
}

}  // namespace

ThreadProcessGroup::ThreadProcessGroup(std::string name, int rank, int size, Meeting meeting)
    : ProcessGroup(std::move(name), rank, size),
      meeting_(std::move(meeting)),
      communication_([world = meeting_.world] { world->poison(); }) {}

// A group that dies with work under way belongs to a rank that fails; without poison its
// communication thread would wait for peers for ever.
ThreadProcessGroup::~ThreadProcessGroup() {
  if (!communication_.idle()) meeting_.world->poison();
}

void ThreadProcessGroup::all_reduce_impl(const Tensor& x, ReduceOp op) {
  const PostedCall own{Collective::all_reduce, x, {}, x.numel()};
  std::vector<char> result;
  with_posted(*this, meeting_.world, *meeting_.calls, own,
              [&](const auto& posted) { result = reduced(posted, 0, x.numel(), op); });
  copy_bytes(x.data, result.data(), x.bytes());
}

void ThreadProcessGroup::all_gather_impl(const Tensor& out, Counts counts) {
  all_gather_at(*meeting_.calls, out, counts);
}

void ThreadProcessGroup::all_gather_at(ThreadMeetingPoint& point, const Tensor& out,
                                       Counts counts) {
  const PostedCall own{Collective::all_gather, out, counts, hash_of(counts)};
  with_posted(*this, meeting_.world, point, own, [&](const auto& posted) {
    for (size_t peer = 0; peer < posted.size(); ++peer) {
      if (peer == static_cast<size_t>(rank())) continue;
      const int64_t begin = offset_of(counts, peer);
      copy_bytes(element(out, begin), element(posted[peer].tensor, begin),
                 counts[peer] * dtype_bytes(out.dtype));
    }
  });
}

void ThreadProcessGroup::reduce_scatter_impl(const Tensor& x, Counts counts) {
  reduce_scatter_at(*meeting_.calls, x, counts);
}

void ThreadProcessGroup::reduce_scatter_at(ThreadMeetingPoint& point, const Tensor& x,
                                           Counts counts) {
  const PostedCall own{Collective::reduce_scatter, x, counts, hash_of(counts)};
  const int64_t begin = offset_of(counts, static_cast<size_t>(rank()));
  const int64_t end = begin + counts[static_cast<size_t>(rank())];
  std::vector<char> result;
  with_posted(*this, meeting_.world, point, own,
              [&](const auto& posted) { result = reduced(posted, begin, end, ReduceOp::sum); });
  copy_bytes(element(x, begin), result.data(), static_cast<int64_t>(result.size()));
}

void ThreadProcessGroup::all_to_all_impl(const Tensor& out, const Tensor& x, Counts send_counts,
                                         Counts receive_counts) {
  const PostedCall own{Collective::all_to_all, x, send_counts, 0};
  with_posted(*this, meeting_.world, *meeting_.calls, own, [&](const auto& posted) {
    const int64_t row_bytes = out.shape[0] == 0 ? 0 : out.bytes() / out.shape[0];
    const auto self = static_cast<size_t>(rank());
    for (size_t peer = 0; peer < posted.size(); ++peer) {
      const int64_t rows = posted[peer].counts[self];
      check(rows == receive_counts[peer], "group ", name(), ": rank ", peer, " sends ", rows,
            " rows to rank ", self, ", which expects ", receive_counts[peer]);
      copy_bytes(static_cast<char*>(out.data) + offset_of(receive_counts, peer) * row_bytes,
                 static_cast<const char*>(posted[peer].tensor.data) +
                     offset_of(posted[peer].counts, self) * row_bytes,
                 rows * row_bytes);
    }
  });
}

void ThreadProcessGroup::broadcast_impl(const Tensor& x, int root) {
  const PostedCall own{Collective::broadcast, x, {}, x.numel() * size() + root};
  with_posted(*this, meeting_.world, *meeting_.calls, own, [&](const auto& posted) {
    if (rank() != root)
      copy_bytes(x.data, posted[static_cast<size_t>(root)].tensor.data, x.bytes());
  });
}

/// Both ends of messages of this rank. Work that is dropped belongs to a rank that fails: the
/// others are told, and nobody touches its memory any more.
class ThreadProcessGroup::MessageWork final : public Work {
 public:
  explicit MessageWork(const ThreadProcessGroup& group)
      : name_(group.name()), meeting_(group.meeting_) {}
  ~MessageWork() override {
    if (!waited_) give_up();
  }

  void post(int rank, const Exchange& message) {
    if (message.receive)
      messages_.push_back(meeting_.world->receive(
          *meeting_.calls, {message.peer, rank, message.channel}, message.receive, name_));
    if (message.send)
      messages_.push_back(meeting_.world->send(
          *meeting_.calls, {rank, message.peer, message.channel}, message.send, name_));
  }

 private:
  void wait_impl() override {
    waited_ = true;
    try {
      for (const auto& message : messages_) meeting_.world->wait(*message, name_);
    } catch (...) {
      give_up();
      throw;
    }
  }
  void give_up() { meeting_.world->withdraw(*meeting_.calls, messages_); }

  std::string name_;
  Meeting meeting_;
  std::vector<ThreadWorld::MessagePtr> messages_;
  bool waited_ = false;
};

PendingWork ThreadProcessGroup::exchange_async_impl(std::span<const Exchange> messages) {
  auto work = std::make_unique<MessageWork>(*this);
  for (const Exchange& message : messages)
    if (message.peer != rank()) work->post(rank(), message);
  return work;
}

void ThreadProcessGroup::barrier_impl() {
  with_posted(*this, meeting_.world, *meeting_.calls, PostedCall{}, [](const auto&) {});
}

PendingWork ThreadProcessGroup::reduce_scatter_async_impl(const Tensor& x, Counts counts) {
  return communication_.submit([this, x, kept = std::vector(counts.begin(), counts.end())] {
    reduce_scatter_at(*meeting_.async_calls, x, kept);
  });
}

PendingWork ThreadProcessGroup::all_gather_async_impl(const Tensor& out, Counts counts) {
  return communication_.submit([this, out, kept = std::vector(counts.begin(), counts.end())] {
    all_gather_at(*meeting_.async_calls, out, kept);
  });
}

std::unique_ptr<ProcessGroup> ThreadRank::group(const std::string& name,
                                                const std::vector<int64_t>& ranks) {
  const auto place = std::find(ranks.begin(), ranks.end(), rank_);
  check(place != ranks.end(), "rank ", rank_, " asks for group ", name, ", which it is not in");
  std::string key = fmt::format("{} {}", name, fmt::join(ranks, ","));
  key += fmt::format(" {}", num_made_[key]++);
  return std::make_unique<ThreadProcessGroup>(
      name, static_cast<int>(place - ranks.begin()), static_cast<int>(ranks.size()),
      ThreadProcessGroup::Meeting{world_, world_->meeting_point(key, ranks.size()),
                                  world_->meeting_point(key + " async", ranks.size())});
}

std::unique_ptr<ProcessGroup> ThreadRank::world_group() {
  std::vector<int64_t> ranks(static_cast<size_t>(size_));
  std::iota(ranks.begin(), ranks.end(), int64_t{0});
  return group("world", ranks);
}

ProcessGroups ThreadRank::process_groups(const DeviceMesh& mesh) {
  check(mesh.world_size() == size_, "a mesh of ", mesh.world_size(), " ranks on ", size_,
        " thread ranks");
  return make_process_groups(mesh, rank_,
                             [&](const std::string& name, const std::vector<int64_t>& ranks) {
                               return group(name, ranks);
                             });
}

void run_thread_ranks(int num_ranks, const std::function<void(ThreadRank&)>& body) {
  check(num_ranks >= 1, "at least one thread rank is needed, got ", num_ranks);
  const auto world = std::make_shared<ThreadWorld>();
  std::vector<std::thread> threads;
  for (int r = 0; r < num_ranks; ++r) {
    threads.emplace_back([&, r] {
      try {
        ThreadRank rank(world, r, num_ranks);
        body(rank);
      } catch (const PoisonedError&) {
        world->record_failure(std::current_exception(), true);
        world->poison();
      } catch (...) {
        world->record_failure(std::current_exception(), false);
        world->poison();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (world->failure()) std::rethrow_exception(world->failure());
}

}  // namespace phalanx
