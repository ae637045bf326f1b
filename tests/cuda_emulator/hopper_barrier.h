// mbarrier objects: barriers in shared memory that count arrivals and bytes. From the PTX ISA,
// "Parallel Synchronization and Communication Instructions: mbarrier".
#pragma once

#include <cstdint>

#include "tests/cuda_emulator/scheduler.h"

namespace phalanx::emulator {

/// One mbarrier. A phase is complete when its pending arrivals and its transaction count are zero;
/// the next one starts at once.
class Mbarrier {
 public:
  static constexpr int64_t kMaxCount = (1 << 20) - 1;
  Mbarrier() = default;
  Mbarrier(uint32_t arrivals, int initialiser)
      : arrivals_(arrivals), pending_(arrivals), initialiser_(initialiser) {}

  /// Each returns what is wrong, or "".
  std::string arrive();
  std::string expect(int64_t bytes);
  std::string complete(int64_t bytes);

  /// Whether a wait for `parity` is over: the phase under way has the other one.
  bool has_completed(uint32_t parity) const { return (phase_ & 1) != parity; }
  /// The initialising thread fenced: TMA may count on the barrier.
  void show_to_async_proxy(int thread) { visible_ = visible_ || thread == initialiser_; }
  bool is_visible_to_async_proxy() const { return visible_; }

 private:
  std::string count_bytes(int64_t bytes);
  void complete_phase_if_due();
  uint32_t arrivals_ = 0;
  uint32_t pending_ = 0;
  int64_t bytes_ = 0;  // below zero while a copy was faster than its announcement
  uint32_t phase_ = 0;
  int initialiser_ = 0;
  bool visible_ = false;
};

/// The instructions, on the running block's shared memory. End the kernel on misuse.
void init_barrier(uint64_t* barrier, uint32_t arrivals, const Site& site);
void fence_barrier_init(const Site& site);
/// Announces `bytes` first, then arrives.
void arrive_at_barrier(uint64_t* barrier, uint32_t bytes, const Site& site);
/// Announces `bytes` alone.
void expect_at_barrier(uint64_t* barrier, uint32_t bytes, const Site& site);
void wait_for_barrier(uint64_t* barrier, uint32_t parity, const Site& site);
void fence_async_proxy(const Site& site);

/// The object at `barrier`, which must have been initialised and not been written to since.
Mbarrier& find_barrier(const uint64_t* barrier, const Site& site);

}  // namespace phalanx::emulator
