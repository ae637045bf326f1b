// Meetings of threads and the barriers made of them.
#include "tests/cuda_emulator/collective.h"

#include <fmt/format.h>

namespace phalanx::emulator {
namespace {
thread_local Meetings the_meetings;
}  // namespace

Meetings& meetings() {
  return the_meetings;
}

void clear_meetings() {
  the_meetings = Meetings{};
}

void check_meetings() {
  for (size_t id = 0; id < the_meetings.named.size(); ++id)
    if (!the_meetings.named[id].is_empty())
      throw KernelError(
          fmt::format("a block ended with threads counted in at barrier {} in vain", id));
}

void Meeting::compare_terms(Scheduler& block, const Terms& terms) const {
  const bool same_place =
      terms.same_place ? terms.site == terms_.site : terms.site.operation == terms_.site.operation;
  const auto already = [&] {
    return waiting_.empty() ? std::string("others are")
                            : fmt::format("thread {} of the block is", waiting_.front()->linear);
  };
  if (!same_place && terms.same_place)
    block.fail(terms.site, fmt::format("divergence: {} in {}", already(), terms_.site.text()));
  if (terms.key != terms_.key)
    block.fail(terms.site, fmt::format("called with mask or count {:#x}, but {} in it with {:#x}",
                                       terms.key, already(), terms_.key));
}

bool Meeting::arrive(Scheduler& block, const Terms& terms, int slot, void* operand) {
  if (arrived_ == 0) {
    terms_ = terms;
    operands_.clear();
  } else {
    compare_terms(block, terms);
  }
  if (operand != nullptr) {
    if (operands_.empty()) operands_.resize(terms.expected <= 32 ? 32 : 128, nullptr);
    operands_[static_cast<size_t>(slot)] = operand;
  }
  if (++arrived_ == terms.expected) return true;
  if (slot >= 0) waiting_.push_back(&block.self());
  return false;
}

void Meeting::release(Scheduler& block) {
  arrived_ = 0;
  for (Thread* thread : waiting_) block.make_ready(*thread);
  waiting_.clear();
}

void block_barrier(const Site& site) {
  Scheduler& block = running_block(site);
  Meeting& meeting = meetings().block;
  if (meeting.arrive(block, {site, 0, block.num_threads()}, 0, nullptr)) {
    meeting.release(block);
  } else {
    block.wait(site);
  }
}

namespace {
Meeting::Terms barrier_terms(Scheduler& block, int id, int threads, const Site& site) {
  if (id < 0 || id > 15) block.fail(site, fmt::format("there is no barrier {}, only 0 to 15", id));
  if (threads <= 0 || threads % 32 != 0 || threads > block.num_threads())
    block.fail(site, fmt::format("barrier {} of {} threads: needs a multiple of 32, at most the {} "
                                 "threads of the block",
                                 id, threads, block.num_threads()));
  return {site, static_cast<uint64_t>(threads), threads, false};
}
}  // namespace

void named_barrier_sync(int id, int threads, const Site& site) {
  Scheduler& block = running_block(site);
  const auto terms = barrier_terms(block, id, threads, site);
  Meeting& meeting = meetings().named[static_cast<size_t>(id)];
  if (meeting.arrive(block, terms, 0, nullptr)) {
    meeting.release(block);
  } else {
    block.wait(site);
  }
}

}  // namespace phalanx::emulator
