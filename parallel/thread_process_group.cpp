// Collectives of thread ranks: every rank posts what it has, all meet, each computes its own result
// from the others' memory, all meet again.
#include "parallel/thread_process_group.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

namespace phalanx {
namespace {

/// What a rank brings to a collective. The same on all ranks: operation, dtype and agreement.
struct Posted {
  Collective operation = Collective::barrier;
  Tensor tensor;
  std::span<const int64_t> counts;
  std::span<const Exchange> messages;
  int64_t agreement = 0;  // any number all ranks must agree on: elements, root, hash of counts
};

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
std::vector<char> reduced(const std::vector<Posted>& posted, int64_t begin, int64_t end,
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

}  // namespace

struct ThreadMeetingPoint {
  explicit ThreadMeetingPoint(size_t size) : posted(size) {}
  std::vector<Posted> posted;
  size_t arrived = 0;
  uint64_t generation = 0;
};

class ThreadWorld {
 public:
  /// Returns when all ranks of the point are here; throws if a rank failed.
  void meet(ThreadMeetingPoint& point, const std::string& group) {
    std::unique_lock lock(mutex_);
    throw_if_poisoned(group);
    const uint64_t generation = point.generation;
    if (++point.arrived == point.posted.size()) {
      point.arrived = 0;
      ++point.generation;
      changed_.notify_all();
      return;
    }
    changed_.wait(lock, [&] { return point.generation != generation || poisoned_; });
    if (point.generation == generation) throw_if_poisoned(group);
  }

  /// Returns when all ranks that met at the point have read what they need. Poison does not count
  /// here: all who met will come, and whoever left early would free memory that others still read.
  void meet_again(ThreadMeetingPoint& point) {
    std::unique_lock lock(mutex_);
    const uint64_t generation = point.generation;
    if (++point.arrived == point.posted.size()) {
      point.arrived = 0;
      ++point.generation;
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return point.generation != generation; });
  }

  void poison() {
    const std::lock_guard lock(mutex_);
    poisoned_ = true;
    changed_.notify_all();
  }

  /// Keeps the first failure; an echo gives way to a cause.
  void record_failure(const std::exception_ptr& failure, bool echo) {
    const std::lock_guard lock(mutex_);
    if (failure_ && (echo || !failure_is_echo_)) return;
    failure_ = failure;
    failure_is_echo_ = echo;
  }
  std::exception_ptr failure() const { return failure_; }

  std::shared_ptr<ThreadMeetingPoint> meeting_point(const std::string& key, size_t size) {
    const std::lock_guard lock(mutex_);
    auto& point = points_[key];
    if (!point) point = std::make_shared<ThreadMeetingPoint>(size);
    return point;
  }

 private:
  void throw_if_poisoned(const std::string& group) const {
    if (poisoned_)
      throw PoisonedError("group " + group +
                          ": another rank failed, so this collective cannot end");
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool poisoned_ = false;
  std::exception_ptr failure_;
  bool failure_is_echo_ = false;
  std::map<std::string, std::shared_ptr<ThreadMeetingPoint>> points_;
};

namespace {

/// Posts, meets, checks that all ranks called the same, lets `body` read what is posted, and meets
/// again so that nobody's memory changes while another still reads it.
template <class Body>
void with_posted(ThreadProcessGroup& group, const std::shared_ptr<ThreadWorld>& world,
                 ThreadMeetingPoint& point, const Posted& own, Body&& body) {
  point.posted[static_cast<size_t>(group.rank())] = own;
  world->meet(point, group.name());
  for (size_t rank = 0; rank < point.posted.size(); ++rank) {
    const Posted& other = point.posted[rank];
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
  const Posted own{Collective::all_reduce, x, {}, {}, x.numel()};
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
  const Posted own{Collective::all_gather, out, counts, {}, hash_of(counts)};
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
  const Posted own{Collective::reduce_scatter, x, counts, {}, hash_of(counts)};
  const int64_t begin = offset_of(counts, static_cast<size_t>(rank()));
  const int64_t end = begin + counts[static_cast<size_t>(rank())];
  std::vector<char> result;
  with_posted(*this, meeting_.world, point, own,
              [&](const auto& posted) { result = reduced(posted, begin, end, ReduceOp::sum); });
  copy_bytes(element(x, begin), result.data(), static_cast<int64_t>(result.size()));
}

void ThreadProcessGroup::all_to_all_impl(const Tensor& out, const Tensor& x, Counts send_counts,
                                         Counts receive_counts) {
  const Posted own{Collective::all_to_all, x, send_counts, {}, 0};
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
  const Posted own{Collective::broadcast, x, {}, {}, x.numel() * size() + root};
  with_posted(*this, meeting_.world, *meeting_.calls, own, [&](const auto& posted) {
    if (rank() != root)
      copy_bytes(x.data, posted[static_cast<size_t>(root)].tensor.data, x.bytes());
  });
}

void ThreadProcessGroup::exchange_impl(std::span<const Exchange> messages) {
  const Posted own{Collective::exchange, {}, {}, messages, 0};
  with_posted(*this, meeting_.world, *meeting_.calls, own, [&](const auto& posted) {
    std::vector<size_t> next(posted.size(), 0);  // per peer: messages already looked at
    for (const Exchange& message : messages) {
      if (message.peer == rank() || !message.receive) continue;
      const auto peer = static_cast<size_t>(message.peer);
      const std::span<const Exchange> theirs = posted[peer].messages;
      const auto to_me = [&](const Exchange& m) { return m.peer == rank() && m.send; };
      while (next[peer] < theirs.size() && !to_me(theirs[next[peer]])) ++next[peer];
      check(next[peer] < theirs.size(), "group ", name(), ": rank ", rank(),
            " expects a message that rank ", peer, " does not send");
      const Tensor& source = theirs[next[peer]++].send;
      check(source.bytes() == message.receive.bytes(), "group ", name(), ": rank ", peer, " sends ",
            source.bytes(), " bytes, rank ", rank(), " expects ", message.receive.bytes());
      copy_bytes(message.receive.data, source.data, source.bytes());
    }
  });
}

void ThreadProcessGroup::barrier_impl() {
  with_posted(*this, meeting_.world, *meeting_.calls, Posted{}, [](const auto&) {});
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
