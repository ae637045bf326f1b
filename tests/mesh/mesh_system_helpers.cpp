// Batches of random ids, and differences of counters.
#include "tests/mesh/mesh_system.h"

#include <fmt/format.h>

namespace phalanx::test {

MicroBatch make_micro_batch(const LayoutCase& layout, int64_t index,
                            const std::function<bool(int64_t, int64_t)>& masked) {
  const Philox random(layout.seed, fmt::format("micro-batch {}", index));
  MicroBatch batch{.positions = layout.shape.positions, .sequences = layout.shape.sequences};
  const auto draw = [&](int64_t i) {
    return static_cast<int32_t>(random.uniform(static_cast<uint64_t>(i)) *
                                static_cast<double>(layout.model.vocab_size));
  };
  for (int64_t i = 0; i < batch.positions * batch.sequences; ++i) {
    batch.tokens.push_back(draw(2 * i));
    const bool hidden = masked && masked(i / batch.sequences, i % batch.sequences);
    batch.targets.push_back(hidden ? kIgnoreTarget : draw(2 * i + 1));
  }
  return batch;
}

TrafficSnapshot::TrafficSnapshot(const ProcessGroup& process_group) : group_(process_group) {
  for (int i = 0; i < kNumCollectives; ++i)
    begin_.push_back(group_.traffic(static_cast<Collective>(i)));
}

Traffic TrafficSnapshot::since(Collective operation) const {
  const Traffic& begin = begin_[static_cast<size_t>(operation)];
  const Traffic& now = group_.traffic(operation);
  return {.calls = now.calls - begin.calls, .bytes = now.bytes - begin.bytes};
}

}  // namespace phalanx::test
