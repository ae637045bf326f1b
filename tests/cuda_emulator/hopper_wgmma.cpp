// The queue of a warpgroup's products.
#include "tests/cuda_emulator/hopper_wgmma.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "tests/cuda_emulator/hopper_block.h"
#include "tests/cuda_emulator/shared_memory.h"

namespace phalanx::emulator {
namespace {

constexpr uint32_t kPoisonBits = 0x7fdead00;  // a NaN that no arithmetic makes

bool is_poison(const float* d, int count) {
  return std::all_of(d, d + count,
                     [](float value) { return std::bit_cast<uint32_t>(value) == kPoisonBits; });
}

size_t place_of_sum(const ProductTerms& terms, int thread, int i) {
  const Place place = accumulator_place(thread, i);
  return static_cast<size_t>(place.row * terms.columns + place.column);
}

const unsigned char* piece_at(uint32_t address, const Site& site) {
  return static_cast<const unsigned char*>(shared_window_pointer(address, 16, site));
}

/// The operand as it is now.
std::vector<uint16_t> read_now(const SharedOperand& operand, const Site& site) {
  return read_operand(operand, [&](uint32_t address) { return piece_at(address, site); });
}

/// The operand at the product's start, where the async proxy must see it.
std::vector<uint16_t> read_at_start(const SharedOperand& operand, const char* name,
                                    const Site& site) {
  Scheduler& block = running_block(site);
  if (const std::string error = operand_error(operand); !error.empty())
    block.fail(site, fmt::format("operand {}: {}", name, error));
  return read_operand(operand, [&](uint32_t address) {
    const unsigned char* const piece = piece_at(address, site);
    if (!hopper_block().proxy.sees(address, piece))
      block.fail(site,
                 fmt::format("operand {}: threads stored the bytes at {} of the shared window "
                             "without async_proxy_fence",
                             name, address));
    return piece;
  });
}

}  // namespace

void Warpgroup::fence(int thread) {
  ++threads_[static_cast<size_t>(thread)].fences;
}

Warpgroup::Product& Warpgroup::next_product(int thread, const ProductCall& call, const Site& site) {
  const int64_t number = threads_[static_cast<size_t>(thread)].issued++;
  if (number == first_ + static_cast<int64_t>(products_.size())) {
    const auto columns = static_cast<size_t>(call.terms.columns);
    products_.push_back({.site = site, .terms = call.terms});
    products_.back().a.resize(size_t{kProductRows} * kProductDepth);
    products_.back().sums.resize(kProductRows * columns);
  }
  Product& mine = product(number);
  if (!(mine.site == site))
    running_block(site).fail(site, "divergence: other threads of the warpgroup issued " +
                                       mine.site.text() + " as this product");
  if (!(mine.terms == call.terms))
    running_block(site).fail(site, "the threads of the warpgroup disagree on descriptors or terms");
  return mine;
}

void Warpgroup::check_fence(const ThreadState& state, const ProductCall& call, bool chained,
                            const Site& site) const {
  // Registers may be taken as untouched only between products of one chain, and where they are
  // fresh and not read; everything else was written or read since the last wait.
  const bool fresh = !call.terms.accumulate && !state.used.contains(call.d);
  const bool needs_fence = call.terms.a_in_registers || !(chained || fresh);
  const bool fenced = state.fences > state.fences_at_retirement;
  if (state.fences == 0 || (needs_fence && !fenced))
    running_block(site).fail(site, "wgmma_fence is missing since the registers were in use");
}

/// Poisons the accumulators; returns the product that used them last, if it is under way.
int64_t Warpgroup::claim_accumulators(int thread, const ProductCall& call, int64_t number,
                                      const Site& site) {
  ThreadState& state = threads_[static_cast<size_t>(thread)];
  Scheduler& block = running_block(site);
  const int count = call.terms.columns / 2;
  for (Accumulators& other : state.under_way) {
    if (other.d >= call.d + count || call.d >= other.d + other.count) continue;
    if (other.d != call.d || other.count != count)
      block.fail(site, "accumulators overlap those of a product of another shape under way");
    if (!is_poison(call.d, count))
      block.fail(site, "accumulators of a product under way were written before wgmma_wait");
    check_fence(state, call, true, site);
    return std::exchange(other.last_product, number);
  }
  check_fence(state, call, false, site);
  state.under_way.push_back({call.d, count, number});
  state.used.insert(call.d);
  return kNone;
}

void Warpgroup::issue(int thread, const ProductCall& call, const Site& site) {
  Product& mine = next_product(thread, call, site);
  const int64_t number = threads_[static_cast<size_t>(thread)].issued - 1;
  const int64_t chained_to = claim_accumulators(thread, call, number, site);
  if (mine.issued == 0) mine.chained_to = chained_to;
  if (mine.chained_to != chained_to)
    running_block(site).fail(site, "the threads of the warpgroup disagree on accumulators");
  if (chained_to == kNone) {
    for (int i = 0; i < call.terms.columns / 2; ++i) {
      if (call.terms.accumulate) mine.sums[place_of_sum(call.terms, thread, i)] = call.d[i];
      call.d[i] = std::bit_cast<float>(kPoisonBits);
    }
  }
  for (int i = 0; call.terms.a_in_registers && i < 8; ++i) {
    const Place place = multiplicand_place(thread, i);
    mine.a[static_cast<size_t>(place.row * kProductDepth + place.column)] =
        static_cast<uint16_t>(call.a[i / 2] >> (i % 2 * 16));
  }
  if (++mine.issued < kThreads) return;
  if (!mine.terms.a_in_registers) mine.a = read_at_start(mine.terms.operand_a(), "A", site);
  mine.b = read_at_start(mine.terms.operand_b(), "B", site);
}

void Warpgroup::commit(int thread) {
  ThreadState& state = threads_[static_cast<size_t>(thread)];
  state.group_ends.push_back(state.issued);
}

void Warpgroup::compute(int64_t number, const Site& site) {
  Product& mine = product(number);
  if (mine.done) return;
  const ProductTerms& terms = mine.terms;
  const bool a_is_same = terms.a_in_registers || read_now(terms.operand_a(), site) == mine.a;
  if (!a_is_same || read_now(terms.operand_b(), site) != mine.b)
    running_block(site).fail(mine.site,
                             "an operand in shared memory changed before the warpgroup waited");
  if (!mine.terms.accumulate) std::fill(mine.sums.begin(), mine.sums.end(), 0.0F);
  multiply(mine.a, mine.b, mine.terms.columns, mine.sums);
  mine.done = true;
  for (int64_t later = number + 1; later < first_ + static_cast<int64_t>(products_.size()); ++later)
    if (product(later).chained_to == number) product(later).sums = std::move(mine.sums);
}

void Warpgroup::retire(int thread, int64_t end, const Site& site) {
  ThreadState& state = threads_[static_cast<size_t>(thread)];
  for (int64_t number = state.retired; number < end; ++number) {
    compute(number, site);
    ++product(number).retired;
  }
  if (state.retired < end) state.fences_at_retirement = state.fences;
  state.retired = std::max(state.retired, end);
  std::erase_if(state.under_way, [&](const Accumulators& registers) {
    if (registers.last_product >= end) return false;
    if (!is_poison(registers.d, registers.count))
      running_block(site).fail(site, "accumulators were written while their product was under way");
    const Product& last = product(registers.last_product);
    for (int i = 0; i < registers.count; ++i)
      registers.d[i] = last.sums[place_of_sum(last.terms, thread, i)];
    return true;
  });
  for (; !products_.empty() && products_.front().retired == kThreads; ++first_)
    products_.pop_front();
}

void Warpgroup::wait(int thread, int pending, const Site& site) {
  ThreadState& state = threads_[static_cast<size_t>(thread)];
  const auto finished = static_cast<std::ptrdiff_t>(state.group_ends.size()) - pending;
  if (finished <= 0) return;
  const int64_t end = state.group_ends[static_cast<size_t>(finished - 1)];
  state.group_ends.erase(state.group_ends.begin(), state.group_ends.begin() + finished);
  running_block(site).wait_until(site, [&] {
    return std::all_of(products_.begin(), products_.begin() + std::max<int64_t>(end - first_, 0),
                       [](const Product& product) { return product.issued == kThreads; });
  });
  retire(thread, end, site);
}

namespace {

struct Member {
  Warpgroup& warpgroup;
  int thread;
};

Member member(const Site& site) {
  Scheduler& block = running_block(site);
  const int linear = block.self().linear;
  if (linear / 128 * 128 + 128 > block.num_threads())
    block.fail(site, "the thread is in no complete warpgroup");
  return {hopper_block().warpgroups[linear / 128], linear % 128};
}

}  // namespace

void fence_products(const Site& site) {
  const Member me = member(site);
  me.warpgroup.fence(me.thread);
}

void issue_product(const ProductCall& call, const Site& site) {
  const Member me = member(site);
  me.warpgroup.issue(me.thread, call, site);
}

void commit_products(const Site& site) {
  const Member me = member(site);
  me.warpgroup.commit(me.thread);
}

void wait_for_products(int pending, const Site& site) {
  const Member me = member(site);
  me.warpgroup.wait(me.thread, pending, site);
}

}  // namespace phalanx::emulator
