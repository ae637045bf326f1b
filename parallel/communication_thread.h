// CommunicationThread: one thread that runs collectives in the order they were handed in, so that
// they progress while the rank computes.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "parallel/process_group.h"

namespace phalanx {

/// Owns the thread, which starts with the first submission. One thread submits.
class CommunicationThread {
 public:
  /// `on_drop` is called when work is dropped before it is done, which a rank does that fails.
  explicit CommunicationThread(std::function<void()> on_drop = {}) : on_drop_(std::move(on_drop)) {}
  /// Joins once all submitted work has run.
  ~CommunicationThread();
  CommunicationThread(const CommunicationThread&) = delete;
  CommunicationThread& operator=(const CommunicationThread&) = delete;

  /// Runs `collective` after all earlier ones. What it throws is thrown by `wait`.
  [[nodiscard]] PendingWork submit(std::function<void()> collective);
  /// True if nothing runs or waits to run.
  bool idle() const;
  /// Lets go of the thread and of what it still has to do: for a rank that fails while its peers
  /// will never come to the collective. The process is expected to end.
  void abandon();

 private:
  struct Queue;
  static void run(const std::shared_ptr<Queue>& queue);

  std::function<void()> on_drop_;
  std::shared_ptr<Queue> queue_;  // null until the first submission
};

}  // namespace phalanx
