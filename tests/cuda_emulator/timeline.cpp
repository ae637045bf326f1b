// The host thread that works off a stream's queue.
#include <cstdlib>
#include <exception>
#include <utility>

#include "tests/cuda_emulator/order.h"
#include "tests/cuda_emulator/runtime_state.h"

namespace phalanx::emulator {

Timeline::Timeline(int device) : device_(device), worker_([this] { work(); }) {}

Timeline::~Timeline() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    demanded_ = submitted_;
    queued_.notify_all();
  }
  worker_.join();
}

uint64_t Timeline::submit(Task task) {
  const std::lock_guard lock(mutex_);
  queue_.push_back(std::move(task));
  queued_.notify_all();
  return ++submitted_;
}

uint64_t Timeline::submitted() const {
  const std::lock_guard lock(mutex_);
  return submitted_;
}

bool Timeline::done(uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  demanded_ = std::max(demanded_, ticket);
  queued_.notify_all();
  return completed_ >= ticket;
}

void Timeline::wait(uint64_t ticket) {
  std::unique_lock lock(mutex_);
  demanded_ = std::max(demanded_, ticket);
  queued_.notify_all();
  finished_.wait(lock, [&] { return completed_ >= ticket; });
}

void Timeline::pause() const {
  if (stream_pace() != StreamPace::random) return;
  constexpr uint64_t kMostMicroseconds = 300;
  RunOrder order = RunOrder::current();
  if (order.random(4) == 0)
    std::this_thread::sleep_for(std::chrono::microseconds(order.random(kMostMicroseconds)));
}

void Timeline::work() {
  static_cast<void>(cudaSetDevice(device_));
  std::unique_lock lock(mutex_);
  for (;;) {
    queued_.wait(lock, [&] {
      const bool wanted = stream_pace() != StreamPace::lazy || completed_ < demanded_;
      return (!queue_.empty() && wanted) || (queue_.empty() && stopping_);
    });
    if (queue_.empty()) return;
    const Task task = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    pause();
    try {
      if (device_error() == cudaSuccess) task();
    } catch (const std::exception& error) {
      break_device(cudaErrorLaunchFailure, error.what());
    }
    lock.lock();
    ++completed_;
    finished_.notify_all();
  }
}

}  // namespace phalanx::emulator
