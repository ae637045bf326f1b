// The scheduler of a block's fibers.
#include "tests/cuda_emulator/scheduler.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <utility>

#include "tests/cuda_emulator/device_variables.h"

__thread uint3 threadIdx;
__thread uint3 blockIdx;
__thread dim3 blockDim;
__thread dim3 gridDim;

namespace phalanx::emulator {

__thread Scheduler* this_block = nullptr;

Scheduler& running_block(const Site& site) {
  if (this_block == nullptr) {
    std::fprintf(stderr, "CUDA emulator: host code called %s\n", site.text().c_str());
    std::abort();
  }
  return *this_block;
}

std::string Site::text() const {
  const char* slash = std::strrchr(where.file_name(), '/');
  return std::string(operation) + " at " + (slash ? slash + 1 : where.file_name()) + ":" +
         std::to_string(where.line());
}

Scheduler::Scheduler() : order_(RunOrder::current()) {}
Scheduler::~Scheduler() = default;

void Scheduler::prepare(const BlockRun& block) {
  block_ = &block;
  order_ = RunOrder::current();
  blockIdx = block.index;
  blockDim = block.threads;
  gridDim = block.grid;
  const size_t count = size_t{block.threads.x} * block.threads.y * block.threads.z;
  threads_.assign(count, Thread{});
  for (size_t i = 0; i < count; ++i) {
    const auto linear = static_cast<unsigned>(i);
    threads_[i].linear = static_cast<int>(i);
    threads_[i].index = {linear % block.threads.x, linear / block.threads.x % block.threads.y,
                         linear / block.threads.x / block.threads.y};
  }
  start_order_.resize(count);
  std::iota(start_order_.begin(), start_order_.end(), 0);
  if (order_.order() == Order::backward) std::reverse(start_order_.begin(), start_order_.end());
  for (size_t i = count; order_.is_random() && i > 1; --i)
    std::swap(start_order_[i - 1], start_order_[order_.random(i)]);
  num_started_ = num_finished_ = 0;
  later_.clear();  // what the last block did not wait for is not brought to this one
}

void Scheduler::run(const BlockRun& block) {
  prepare(block);
  describe_host_stack(host_);
  Scheduler* outer = std::exchange(this_block, this);
  resume(*choose());
  this_block = outer;
  if (error_.empty()) return;
  // The threads that cannot go on are given up with their stacks.
  fibers_.clear();
  free_fibers_.clear();
  ready_.clear();
  polling_.clear();
  later_.clear();
  throw KernelError(std::exchange(error_, {}));
}

/// Switches from whoever runs (the host or a fiber) to `next`.
void Scheduler::resume(Thread& next) {
  Context& from = self_ == nullptr ? host_ : *self_->fiber;
  if (next.fiber == nullptr) {
    if (free_fibers_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>(&Scheduler::fiber_main, this));
      free_fibers_.push_back(fibers_.back().get());
    }
    next.fiber = free_fibers_.back();
    free_fibers_.pop_back();
  }
  Thread* const leaving = self_;
  self_ = &next;
  switch_context(from, *next.fiber);
  // Back again: somebody made this thread ready and chose it, or the block is done.
  if (leaving != nullptr) threadIdx = leaving->index;
}

/// A fiber runs threads one after another as long as they end without another one waiting, so that
/// a kernel without synchronisation is a plain loop.
void Scheduler::fiber_main(void* scheduler) {
  auto& self = *static_cast<Scheduler*>(scheduler);
  for (;;) self.run_threads();
}

void Scheduler::run_threads() {
  Thread& thread = *self_;
  thread.state = Thread::State::running;
  threadIdx = thread.index;
  Fiber* const mine = thread.fiber;
  Thread* next = nullptr;
  try {
    (*block_->body)();
    thread.state = Thread::State::finished;
    ++num_finished_;
    next = choose();
  } catch (const KernelError& error) {
    error_ = error.what();
  } catch (const std::exception& error) {
    error_ = place_text(&thread) + "an exception in device code: " + error.what();
  }
  if (next == nullptr) {
    if (error_.empty() && num_finished_ < threads_.size()) error_ = stuck_text();
    free_fibers_.push_back(mine);
    self_ = nullptr;
    switch_context(*mine, host_);  // continues here in a later block
    return;
  }
  if (next->fiber == nullptr) {
    next->fiber = mine;
    self_ = next;
    return;
  }
  free_fibers_.push_back(mine);
  self_ = next;
  switch_context(*mine, *next->fiber);  // continues here as another thread
}

void Scheduler::wait(const Site& site) {
  self_->state = Thread::State::waiting;
  self_->site = site;
  leave();
}

void Scheduler::leave() {
  Thread& me = *self_;
  Thread* const next = choose();
  if (next == &me) {
    me.state = Thread::State::running;
    return;
  }
  if (next == nullptr) {
    error_ = stuck_text();
    self_ = nullptr;
    switch_context(*me.fiber, host_);
    std::abort();
  }
  resume(*next);
  me.state = Thread::State::running;
}

void Scheduler::make_ready(Thread& thread) {
  thread.state = Thread::State::ready;
  ready_.push_back(&thread);
}

void Scheduler::wait_polling(const Site& site, bool (*condition)(void*), void* argument) {
  self_->condition = condition;
  self_->condition_argument = argument;
  polling_.push_back(self_);
  wait(site);
}

void Scheduler::later(std::function<void()> work) {
  later_.push_back(std::move(work));
}

void Scheduler::do_later(size_t place) {
  const auto work = std::move(later_[place]);
  later_.erase(later_.begin() + static_cast<std::ptrdiff_t>(place));
  work();
}

Thread* Scheduler::choose() {
  constexpr uint64_t kEarly = 16;
  if (order_.is_random() && !later_.empty() && order_.random(kEarly) == 0)
    do_later(order_.random(later_.size()));
  const bool can_start = num_started_ < start_order_.size();
  if (order_.is_random() && can_start && !ready_.empty())
    return order_.random(2) == 0 ? take_unstarted() : take_ready();
  if (order_.order() == Order::warps && self_ != nullptr)
    if (Thread* const same = take_of_warp(self_->linear / 32)) return same;
  if (!ready_.empty()) return take_ready();
  if (can_start) return take_unstarted();
  return wake_somebody() ? take_ready() : nullptr;
}

/// A thread of the warp that can go on or start; null if none can.
Thread* Scheduler::take_of_warp(int warp) {
  const auto of_warp = [warp](const Thread* thread) { return thread->linear / 32 == warp; };
  if (const auto found = std::ranges::find_if(ready_, of_warp); found != ready_.end()) {
    Thread* const thread = *found;
    ready_.erase(found);
    return thread;
  }
  const bool starts = num_started_ < start_order_.size() &&
                      static_cast<int>(start_order_[num_started_]) / 32 == warp;
  return starts ? take_unstarted() : nullptr;
}

Thread* Scheduler::take_ready() {
  if (order_.is_random()) std::swap(ready_.front(), ready_[order_.random(ready_.size())]);
  Thread* const thread = ready_.front();
  ready_.pop_front();
  return thread;
}

Thread* Scheduler::take_unstarted() {
  return &threads_[static_cast<size_t>(start_order_[num_started_++])];
}

/// Asks the conditions of those who poll; what was put off is done one by one until one holds.
bool Scheduler::wake_somebody() {
  if (num_finished_ == threads_.size()) return false;  // what is still put off came too late
  for (;;) {
    const size_t before = polling_.size();
    std::erase_if(polling_, [&](Thread* thread) {
      if (!thread->condition(thread->condition_argument)) return false;
      make_ready(*thread);
      return true;
    });
    if (polling_.size() < before) return true;
    if (later_.empty()) return false;
    const size_t last = later_.size() - 1;
    do_later(order_.is_random() ? order_.random(last + 1)
                                : (order_.order() == Order::backward ? last : 0));
  }
}

/// Unwinds the thread's stack, so that nothing on it leaks; the other threads' hold nothing.
void Scheduler::fail(const Site& site, const std::string& text) {
  throw KernelError(place_text(self_) + site.text() + ": " + text);
}

namespace {
std::string triple(const uint3& v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

/// "0-15, 20" from ascending numbers.
std::string ranges(const std::vector<int>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t end = i + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    text += (i == 0 ? "" : ", ") + std::to_string(numbers[i]);
    if (end > i + 1) text += "-" + std::to_string(numbers[end - 1]);
    i = end;
  }
  return text;
}
}  // namespace

std::string Scheduler::place_text(const Thread* thread) const {
  std::string text = "block " + triple(block_->index);
  if (thread != nullptr) text += ", thread " + triple(thread->index);
  return text + ": ";
}

std::string Scheduler::stuck_text() const {
  std::map<std::string, std::vector<int>> places;
  for (const Thread& thread : threads_) {
    const bool finished = thread.state == Thread::State::finished;
    places[finished ? "have ended" : "wait in " + thread.site.text()].push_back(thread.linear);
  }
  std::string text = place_text(nullptr) + "no thread can go on:";
  for (const auto& [place, numbers] : places) text += " [" + ranges(numbers) + "] " + place + ";";
  text.pop_back();
  return text;
}

}  // namespace phalanx::emulator
