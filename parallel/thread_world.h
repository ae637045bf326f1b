// ThreadWorld: where the thread ranks of one process meet and leave messages for each other.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "parallel/process_group.h"

namespace phalanx {

/// Thrown at ranks that wait for one that failed.
class PoisonedError : public Error {
 public:
  using Error::Error;
};

/// What a rank brings to a collective. The same on all ranks: operation, dtype and agreement.
struct PostedCall {
  Collective operation = Collective::barrier;
  Tensor tensor;
  std::span<const int64_t> counts;
  int64_t agreement = 0;  // any number all ranks must agree on: elements, root, hash of counts
};

/// One end of a message: what is sent, or where it shall arrive.
struct PostedMessage {
  Tensor tensor;
  bool done = false;
  std::string failure;  // set with `done` when the two ends do not fit
};

/// The messages of one channel from one rank to another whose other end is not here yet. At most
/// one of the two is not empty.
struct Mailbox {
  std::deque<std::shared_ptr<PostedMessage>> sent;
  std::deque<std::shared_ptr<PostedMessage>> awaited;
};

/// Where the ranks of one group meet. Read and written under the world's mutex, but for `posted`,
/// which is written before a meeting and read after it.
struct ThreadMeetingPoint {
  struct Route {
    int source;
    int destination;
    int channel;
    auto operator<=>(const Route&) const = default;
  };
  explicit ThreadMeetingPoint(size_t size) : posted(size) {}
  std::vector<PostedCall> posted;
  size_t arrived = 0;
  uint64_t generation = 0;
  std::map<Route, Mailbox> mailboxes;
};

/// Shared by the threads of one `run_thread_ranks`; any of them may call.
class ThreadWorld {
 public:
  using MessagePtr = std::shared_ptr<PostedMessage>;

  /// Returns when all ranks of the point are here; throws if a rank failed.
  void meet(ThreadMeetingPoint& point, const std::string& group);
  /// Returns when all ranks that met at the point have read what they need. Poison does not count
  /// here: all who met will come, and whoever left early would free memory that others still read.
  void meet_again(ThreadMeetingPoint& point);

  /// Leaves one end of a message. Whoever comes second copies, under the mutex, so that no memory
  /// is touched after its owner has withdrawn.
  MessagePtr send(ThreadMeetingPoint& point, const ThreadMeetingPoint::Route& route,
                  const Tensor& x, const std::string& group);
  MessagePtr receive(ThreadMeetingPoint& point, const ThreadMeetingPoint::Route& route,
                     const Tensor& x, const std::string& group);
  /// Returns when the message has been copied; throws if its ends do not fit or a rank failed.
  void wait(const PostedMessage& message, const std::string& group);
  /// Poisons the world; from here on nobody touches the tensors of these messages.
  void withdraw(ThreadMeetingPoint& point, const std::vector<MessagePtr>& messages);

  void poison();
  /// Keeps the first failure; an echo gives way to a cause.
  void record_failure(const std::exception_ptr& failure, bool echo);
  std::exception_ptr failure() const { return failure_; }

  std::shared_ptr<ThreadMeetingPoint> meeting_point(const std::string& key, size_t size);

 private:
  void throw_if_poisoned(const std::string& group) const;
  void deliver(Mailbox& mailbox, const ThreadMeetingPoint::Route& route, const std::string& group);

  std::mutex mutex_;
  std::condition_variable changed_;
  bool poisoned_ = false;
  std::exception_ptr failure_;
  bool failure_is_echo_ = false;
  std::map<std::string, std::shared_ptr<ThreadMeetingPoint>> points_;
};

}  // namespace phalanx
