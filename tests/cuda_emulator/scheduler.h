// Runs the threads of one block as fibers of one host thread, each until it waits for others.
// A block in which nobody can go on is an error that says who waits where.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/cuda_emulator/fiber.h"
#include "tests/cuda_emulator/include/vector_types.h"
#include "tests/cuda_emulator/order.h"

namespace phalanx::emulator {

/// A mistake of a kernel.
class KernelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An operation in a kernel's source.
struct Site {
  const char* operation = "";
  std::source_location where;
  std::string text() const;
  /// Asked at every arrival of a thread; mostly the texts are the very same.
  bool operator==(const Site& other) const {
    return where.line() == other.where.line() && where.column() == other.where.column() &&
           same_text(operation, other.operation) &&
           same_text(where.file_name(), other.where.file_name());
  }

 private:
  static bool same_text(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }
};

class AsyncCopies;

/// One thread of the running block.
struct Thread {
  enum class State : uint8_t { unstarted, ready, running, waiting, finished };
  uint3 index{};
  int linear = 0;  // in the block; warp linear / 32, lane linear % 32
  State state = State::unstarted;
  Fiber* fiber = nullptr;
  Site site;                           // what it waits in
  bool (*condition)(void*) = nullptr;  // of wait_until
  void* condition_argument = nullptr;
  std::shared_ptr<AsyncCopies> async_copies;  // none before the first
};

/// One block to run: `body` once per thread.
struct BlockRun {
  uint3 index{};
  dim3 threads;
  dim3 grid;
  const std::function<void()>* body = nullptr;
};

/// The block that a host thread runs. Everything but `run` is called from within its threads.
class Scheduler {
 public:
  Scheduler();
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  /// Runs all threads to their end. Throws KernelError.
  void run(const BlockRun& block);

  Thread& self() { return *self_; }
  Thread& thread(int linear) { return threads_[static_cast<size_t>(linear)]; }
  int num_threads() const { return static_cast<int>(threads_.size()); }

  /// Leaves the processor until somebody calls make_ready(self).
  void wait(const Site& site);
  void make_ready(Thread& thread);
  /// Leaves the processor until `condition` holds. It is asked again and again, by any thread.
  template <class Condition>
  void wait_until(const Site& site, Condition condition) {
    if (condition()) return;
    wait_polling(
        site, [](void* argument) { return (*static_cast<Condition*>(argument))(); }, &condition);
  }
  /// Keeps work that the hardware does beside the threads (a copy by TMA): it is done as late as
  /// possible, when nobody can go on without it, or at a random moment under a random order.
  void later(std::function<void()> work);

  /// Ends the kernel with an error that names block and thread.
  [[noreturn]] void fail(const Site& site, const std::string& text);

 private:
  static void fiber_main(void* scheduler);
  void prepare(const BlockRun& block);
  void run_threads();
  void resume(Thread& thread);
  Thread* choose();
  Thread* take_of_warp(int warp);
  Thread* take_ready();
  Thread* take_unstarted();
  bool wake_somebody();
  void do_later(size_t place);
  void leave();
  void wait_polling(const Site& site, bool (*condition)(void*), void* argument);
  std::string stuck_text() const;
  std::string place_text(const Thread* thread) const;

  Context host_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_fibers_;
  std::vector<Thread> threads_;
  std::vector<int> start_order_;
  size_t num_started_ = 0;
  size_t num_finished_ = 0;
  std::deque<Thread*> ready_;
  std::vector<Thread*> polling_;
  std::deque<std::function<void()>> later_;
  Thread* self_ = nullptr;
  const BlockRun* block_ = nullptr;
  std::string error_;
  RunOrder order_;
};

/// The block this host thread runs now, or nullptr.
extern __thread Scheduler* this_block;

/// This block; aborts with a text when host code calls a device function.
Scheduler& running_block(const Site& site);

}  // namespace phalanx::emulator
