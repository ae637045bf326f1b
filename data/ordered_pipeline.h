// One thread reads, several transform, the caller's thread writes in the order of reading. What is
// held in between is bounded in bytes.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace phalanx {

/// `Input` and `Output` are default-constructible and have `int64_t bytes() const`. The result does
/// not depend on the number of workers, errors included: the first in reading order is thrown.
template <class Input, class Output>
class OrderedPipeline {
 public:
  struct Stages {
    std::function<bool(Input&)> read;  // false at the end; on the reading thread
    std::function<void(const Input&, Output&)> transform;  // on any worker
    std::function<void(const Output&)> write;              // on the thread that calls `run`
  };

  /// Reading pauses while `max_bytes` or more are held.
  OrderedPipeline(Stages stages, int64_t num_workers, int64_t max_bytes)
      : stages_(std::move(stages)), num_workers_(num_workers), max_bytes_(max_bytes) {}

  /// Returns when all is written; throws what a stage threw. To be called once.
  void run() {
    std::vector<std::thread> threads;
    const auto join = [&] {
      for (std::thread& thread : threads) thread.join();
    };
    try {
      threads.emplace_back([this] { read_all(); });
      for (int64_t i = 0; i < num_workers_; ++i) threads.emplace_back([this] { transform_all(); });
      write_all();
    } catch (...) {
      stop();
      join();
      throw;
    }
    join();
  }

  /// The most that was held at once, inputs and outputs together.
  int64_t peak_bytes() const { return peak_bytes_; }

 private:
  struct Item {
    Input input;
    Output output;
    std::exception_ptr error;
    bool done = false;
  };

  void stop() {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }

  void add_bytes(int64_t bytes) {
    held_bytes_ += bytes;
    peak_bytes_ = std::max(peak_bytes_, held_bytes_);
  }

  /// `body` with its exception kept in the item.
  template <class Body>
  static bool guarded(Item& item, Body&& body) {
    try {
      return body();
    } catch (...) {
      item.error = std::current_exception();
      return false;
    }
  }

  void read_all() {
    for (bool more = true; more;) {
      auto item = std::make_unique<Item>();
      more = guarded(*item, [&] { return stages_.read(item->input); });
      std::unique_lock lock(mutex_);
      if (!more) item->done = true;  // the end, or an error: nothing to transform
      if (more || item->error) {
        add_bytes(item->input.bytes());
        if (more) waiting_.push_back(item.get());
        items_.push_back(std::move(item));
      }
      at_end_ = !more;
      changed_.notify_all();
      changed_.wait(lock, [&] { return stopping_ || items_.empty() || held_bytes_ < max_bytes_; });
      if (stopping_) return;
    }
  }

  void transform_all() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return stopping_ || !waiting_.empty() || at_end_; });
      if (stopping_ || waiting_.empty()) return;
      Item& item = *waiting_.front();
      waiting_.pop_front();
      lock.unlock();
      guarded(item, [&] { return stages_.transform(item.input, item.output), true; });
      const int64_t input_bytes = item.input.bytes();
      lock.lock();
      add_bytes(item.output.bytes());
      item.input = Input{};
      held_bytes_ -= input_bytes;
      item.done = true;
      changed_.notify_all();
    }
  }

  void write_all() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return items_.empty() ? at_end_ : items_.front()->done; });
      if (items_.empty()) return;
      const std::unique_ptr<Item> item = std::move(items_.front());
      items_.pop_front();
      lock.unlock();
      if (item->error) std::rethrow_exception(item->error);
      stages_.write(item->output);
      const int64_t output_bytes = item->output.bytes();
      lock.lock();
      held_bytes_ -= output_bytes;
      changed_.notify_all();
    }
  }

  Stages stages_;
  int64_t num_workers_;
  int64_t max_bytes_;
  std::mutex mutex_;  // guards all below; items are touched by one thread at a time
  std::condition_variable changed_;
  std::deque<std::unique_ptr<Item>> items_;  // in reading order, until written
  std::deque<Item*> waiting_;                // those to be transformed
  int64_t held_bytes_ = 0;
  int64_t peak_bytes_ = 0;
  bool at_end_ = false;
  bool stopping_ = false;
};

}  // namespace phalanx
