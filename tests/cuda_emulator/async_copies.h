// cp.async: copies of 16 bytes that a thread starts and waits for in groups. Here they happen at
// the wait, the latest moment allowed, and their target is poisoned at the start, the earliest
// moment at which it may change: a missing wait, and a start before others have read, both show.
#pragma once

#include <deque>
#include <vector>

#include "tests/cuda_emulator/scheduler.h"

namespace phalanx::emulator {

/// The asynchronous copies of one thread.
class AsyncCopies {
 public:
  /// 16 bytes from global to shared memory, or zeros unless `valid`.
  void start(void* shared, const void* global, bool valid, const Site& site);
  /// Closes the group of the copies since the last commit.
  void commit();
  /// Does all groups but the latest `pending`.
  void wait(int pending);

 private:
  struct Copy {
    void* target;
    const void* source;  // nullptr: zeros
  };
  std::vector<Copy> open_;
  std::deque<std::vector<Copy>> groups_;
};

/// Of the running thread.
AsyncCopies& async_copies();

}  // namespace phalanx::emulator
