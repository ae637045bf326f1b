// mbarrier.
#include "tests/cuda_emulator/hopper_barrier.h"

#include <fmt/format.h>

#include "tests/cuda_emulator/hopper_block.h"
#include "tests/cuda_emulator/shared_memory.h"

namespace phalanx::emulator {
namespace {

/// What lies in shared memory in place of the opaque object, to notice that it was overwritten.
constexpr uint64_t kMark = 0x7265697272616d62;

void fail_if(const std::string& error, const Site& site) {
  if (!error.empty()) running_block(site).fail(site, error);
}

}  // namespace

std::string Mbarrier::arrive() {
  if (pending_ == 0)
    return fmt::format("more than the {} arrivals that the phase expects", arrivals_);
  --pending_;
  complete_phase_if_due();
  return "";
}

std::string Mbarrier::expect(int64_t bytes) {
  if (bytes > kMaxCount) return fmt::format("expects {} bytes, at most 2^20 - 1 can be", bytes);
  return count_bytes(bytes);
}

std::string Mbarrier::complete(int64_t bytes) {
  return count_bytes(-bytes);
}

std::string Mbarrier::count_bytes(int64_t bytes) {
  bytes_ += bytes;
  if (bytes_ > kMaxCount || bytes_ < -kMaxCount)
    return fmt::format("{} bytes outstanding, outside of +-(2^20 - 1)", bytes_);
  complete_phase_if_due();
  return "";
}

void Mbarrier::complete_phase_if_due() {
  if (pending_ != 0 || bytes_ != 0) return;
  ++phase_;
  pending_ = arrivals_;
}

Mbarrier& find_barrier(const uint64_t* barrier, const Site& site) {
  check_shared(barrier, sizeof(uint64_t), alignof(uint64_t), site);
  auto& barriers = hopper_block().barriers;
  const auto found = barriers.find(barrier);
  if (found == barriers.end()) running_block(site).fail(site, "the barrier is not initialised yet");
  if (*barrier != kMark) running_block(site).fail(site, "the barrier was overwritten");
  return found->second;
}

void init_barrier(uint64_t* barrier, uint32_t arrivals, const Site& site) {
  check_shared(barrier, sizeof(uint64_t), alignof(uint64_t), site);
  Scheduler& block = running_block(site);
  if (arrivals == 0 || arrivals > Mbarrier::kMaxCount)
    block.fail(site, fmt::format("{} arrivals, not 1 to 2^20 - 1", arrivals));
  const bool added =
      hopper_block().barriers.try_emplace(barrier, arrivals, block.self().linear).second;
  if (!added) block.fail(site, "the barrier is initialised already");
  *barrier = kMark;
}

void fence_barrier_init(const Site& site) {
  const int thread = running_block(site).self().linear;
  for (auto& [address, barrier] : hopper_block().barriers) barrier.show_to_async_proxy(thread);
}

void fence_async_proxy(const Site& site) {
  hopper_block().proxy.fence();
  fence_barrier_init(site);
}

void arrive_at_barrier(uint64_t* barrier, uint32_t bytes, const Site& site) {
  Mbarrier& object = find_barrier(barrier, site);
  fail_if(object.expect(bytes), site);
  fail_if(object.arrive(), site);
}

void expect_at_barrier(uint64_t* barrier, uint32_t bytes, const Site& site) {
  fail_if(find_barrier(barrier, site).expect(bytes), site);
}

void wait_for_barrier(uint64_t* barrier, uint32_t parity, const Site& site) {
  const Mbarrier& object = find_barrier(barrier, site);
  Scheduler& block = running_block(site);
  if (parity > 1) block.fail(site, fmt::format("parity {}, not 0 or 1", parity));
  block.wait_until(site, [&] { return object.has_completed(parity); });
}

}  // namespace phalanx::emulator
