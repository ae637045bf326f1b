// Meetings and mailboxes of thread ranks, under one mutex: they serve tests, not speed.
#include "parallel/thread_world.h"

#include <algorithm>
#include <cstring>

namespace phalanx {

void ThreadWorld::meet(ThreadMeetingPoint& point, const std::string& group) {
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

void ThreadWorld::meet_again(ThreadMeetingPoint& point) {
  std::unique_lock lock(mutex_);
  const uint64_t generation = point.generation;
  if (++point.arrived == point.posted.size()) {
    point.arrived = 0;
    ++point.generation;
    changed_.notify_all();
  }
  changed_.wait(lock, [&] { return point.generation != generation; });
}

ThreadWorld::MessagePtr ThreadWorld::send(ThreadMeetingPoint& point,
                                          const ThreadMeetingPoint::Route& route, const Tensor& x,
                                          const std::string& group) {
  auto message = std::make_shared<PostedMessage>(PostedMessage{x});
  const std::lock_guard lock(mutex_);
  Mailbox& mailbox = point.mailboxes[route];
  mailbox.sent.push_back(message);
  deliver(mailbox, route, group);
  return message;
}

ThreadWorld::MessagePtr ThreadWorld::receive(ThreadMeetingPoint& point,
                                             const ThreadMeetingPoint::Route& route,
                                             const Tensor& x, const std::string& group) {
  auto message = std::make_shared<PostedMessage>(PostedMessage{x});
  const std::lock_guard lock(mutex_);
  Mailbox& mailbox = point.mailboxes[route];
  mailbox.awaited.push_back(message);
  deliver(mailbox, route, group);
  return message;
}

void ThreadWorld::deliver(Mailbox& mailbox, const ThreadMeetingPoint::Route& route,
                          const std::string& group) {
  if (poisoned_ || mailbox.sent.empty() || mailbox.awaited.empty()) return;
  PostedMessage& source = *mailbox.sent.front();
  PostedMessage& target = *mailbox.awaited.front();
  const int64_t bytes = source.tensor.bytes();
  if (bytes != target.tensor.bytes()) {
    source.failure = detail::concatenate("group ", group, ": rank ", route.source, " sends ", bytes,
                                         " bytes on channel ", route.channel, ", rank ",
                                         route.destination, " expects ", target.tensor.bytes());
    target.failure = source.failure;
  } else if (bytes > 0) {
    std::memcpy(target.tensor.data, source.tensor.data, static_cast<size_t>(bytes));
  }
  source.done = true;
  target.done = true;
  mailbox.sent.pop_front();
  mailbox.awaited.pop_front();
  changed_.notify_all();
}

void ThreadWorld::wait(const PostedMessage& message, const std::string& group) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return message.done || poisoned_; });
  if (!message.done) throw_if_poisoned(group);
  if (!message.failure.empty()) fail(message.failure);
}

// Only a rank that fails leaves messages behind. Its peers must not take a later message for the
// one that is gone, so they end here and not when the failure has come all the way up.
void ThreadWorld::withdraw(ThreadMeetingPoint& point, const std::vector<MessagePtr>& messages) {
  const std::lock_guard lock(mutex_);
  poisoned_ = true;
  changed_.notify_all();
  const auto withdrawn = [&](const MessagePtr& message) {
    return std::find(messages.begin(), messages.end(), message) != messages.end();
  };
  for (auto& [route, mailbox] : point.mailboxes) {
    std::erase_if(mailbox.sent, withdrawn);
    std::erase_if(mailbox.awaited, withdrawn);
  }
}

void ThreadWorld::poison() {
  const std::lock_guard lock(mutex_);
  poisoned_ = true;
  changed_.notify_all();
}

void ThreadWorld::record_failure(const std::exception_ptr& failure, bool echo) {
  const std::lock_guard lock(mutex_);
  if (failure_ && (echo || !failure_is_echo_)) return;
  failure_ = failure;
  failure_is_echo_ = echo;
}

std::shared_ptr<ThreadMeetingPoint> ThreadWorld::meeting_point(const std::string& key,
                                                               size_t size) {
  const std::lock_guard lock(mutex_);
  auto& point = points_[key];
  if (!point) point = std::make_shared<ThreadMeetingPoint>(size);
  return point;
}

void ThreadWorld::throw_if_poisoned(const std::string& group) const {
  if (poisoned_)
    throw PoisonedError("group " + group + ": another rank failed, so this collective cannot end");
}

}  // namespace phalanx
