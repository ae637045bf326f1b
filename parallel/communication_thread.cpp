// The queue between a rank and its communication thread.
#include "parallel/communication_thread.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "kernels/base/log.h"

namespace phalanx {
namespace {

constexpr std::chrono::seconds kDropPatience{5};

struct Job {
  std::function<void()> collective;
  std::exception_ptr failure;
  bool done = false;
};

}  // namespace

/// Shared with the thread, so that an abandoned thread still has what it reads.
struct CommunicationThread::Queue {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::shared_ptr<Job>> jobs;  // the front one runs
  bool closed = false;
  std::function<void()> on_drop;
  std::thread thread;

  class QueuedWork final : public Work {
   public:
    QueuedWork(std::shared_ptr<Queue> queue, std::shared_ptr<Job> job)
        : queue_(std::move(queue)), job_(std::move(job)) {}
    /// Dropped work may still use memory that is about to be freed. Peers that ran the same program
    /// up to here let it finish; for those that never come nobody waits long.
    ~QueuedWork() override {
      std::unique_lock lock(queue_->mutex);
      if (job_->done) return;
      lock.unlock();
      if (queue_->on_drop) queue_->on_drop();
      lock.lock();
      if (!queue_->changed.wait_for(lock, kDropPatience, [&] { return job_->done; }))
        log_line("a collective that nobody waits for is still under way");
    }

   private:
    void wait_impl() override {
      std::unique_lock lock(queue_->mutex);
      queue_->changed.wait(lock, [&] { return job_->done; });
      if (job_->failure) std::rethrow_exception(job_->failure);
    }

    std::shared_ptr<Queue> queue_;
    std::shared_ptr<Job> job_;
  };
};

CommunicationThread::~CommunicationThread() {
  if (!queue_) return;
  {
    const std::lock_guard lock(queue_->mutex);
    queue_->closed = true;
  }
  queue_->changed.notify_all();
  if (queue_->thread.joinable()) queue_->thread.join();
}

PendingWork CommunicationThread::submit(std::function<void()> collective) {
  if (!queue_) {
    queue_ = std::make_shared<Queue>();
    queue_->on_drop = on_drop_;
    queue_->thread = std::thread([queue = queue_] { run(queue); });
  }
  auto job = std::make_shared<Job>();
  job->collective = std::move(collective);
  {
    const std::lock_guard lock(queue_->mutex);
    queue_->jobs.push_back(job);
  }
  queue_->changed.notify_all();
  return std::make_unique<Queue::QueuedWork>(queue_, std::move(job));
}

bool CommunicationThread::idle() const {
  if (!queue_) return true;
  const std::lock_guard lock(queue_->mutex);
  return queue_->jobs.empty();
}

void CommunicationThread::abandon() {
  if (queue_ && queue_->thread.joinable()) queue_->thread.detach();
}

void CommunicationThread::run(const std::shared_ptr<Queue>& queue) {
  std::unique_lock lock(queue->mutex);
  while (true) {
    queue->changed.wait(lock, [&] { return queue->closed || !queue->jobs.empty(); });
    if (queue->jobs.empty()) return;
    const std::shared_ptr<Job> job = queue->jobs.front();
    lock.unlock();
    std::exception_ptr failure;
    try {
      job->collective();
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    job->failure = failure;
    job->done = true;
    queue->jobs.pop_front();
    queue->changed.notify_all();
  }
}

}  // namespace phalanx
