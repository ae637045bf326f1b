// Gathering by copying rectangles into whole tensors.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/checkpoint/global_state.h"

namespace phalanx::test {

void GlobalState::add(MeshSystem& system) {
  const std::scoped_lock lock(mutex_);
  for (const OptimizerShard& shard : system.optimizer.shards()) {
    const Parameter& parameter = *shard.parameter;
    const Rectangle place{parameter.spec.name,
                          parameter.spec.global_shape,
                          {parameter.offset[0] + shard.row_begin, parameter.offset[1]}};
    const Tensor* const values[] = {&shard.weights, &shard.master, &shard.exp_avg,
                                    &shard.exp_avg_sq};
    for (size_t i = 0; i < kNumValues; ++i) add(place, i, *values[i]);
  }
  // Gathered weights; those of sharded layers are whole only while the layer runs.
  for (int64_t i = 0; i < system.store.size(); ++i) {
    const Parameter& parameter = system.store[i];
    if (parameter.value.data == nullptr) continue;
    add({parameter.spec.name, parameter.spec.global_shape, parameter.offset}, 0,
        parameter.value.view(parameter.matrix_shape()));
  }
}

void GlobalState::add(const Rectangle& place, size_t which, const Tensor& values) {
  const auto [all_rows, all_columns] = matrix_size(place.global_shape);
  Values& whole = tensors_[place.name][which];
  if (whole.bytes.empty()) {
    whole.element = dtype_bytes(values.dtype);
    whole.bytes.resize(static_cast<size_t>(all_rows * all_columns * whole.element));
    whole.known.resize(static_cast<size_t>(all_rows * all_columns));
  }
  const int64_t rows = values.shape[0];
  const int64_t columns = values.shape[1];
  const auto* from = static_cast<const uint8_t*>(values.data);
  bool conflict = false;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column, from += whole.element) {
      const auto index =
          static_cast<size_t>((place.offset[0] + row) * all_columns + place.offset[1] + column);
      uint8_t* to = &whole.bytes.at(index * static_cast<size_t>(whole.element));
      const auto bytes = static_cast<size_t>(whole.element);
      if (whole.known.at(index) && std::memcmp(to, from, bytes) != 0) conflict = true;
      std::memcpy(to, from, bytes);
      whole.known[index] = true;
    }
  if (conflict)
    conflicts_.push_back(std::string("two ranks' ") + kValueNames[which] + " of " + place.name);
}

std::vector<std::string> GlobalState::problems() const {
  std::vector<std::string> found = conflicts_;
  for (const auto& [name, values] : tensors_)
    for (size_t i = 0; i < kNumValues; ++i)
      if (std::ranges::count(values[i].known, false) > 0)
        found.push_back(std::string("incomplete ") + kValueNames[i] + " of " + name);
  return found;
}

std::vector<std::string> GlobalState::differences(const GlobalState& expected) const {
  std::vector<std::string> found;
  for (const auto& [name, values] : expected.tensors_) {
    const auto own = tensors_.find(name);
    for (size_t i = 0; i < kNumValues; ++i) {
      const bool other_precision =
          i == 0 && own != tensors_.end() && own->second[0].element != values[0].element;
      if (!other_precision && (own == tensors_.end() || own->second[i].bytes != values[i].bytes))
        found.push_back(std::string(kValueNames[i]) + " of " + name);
    }
  }
  for (const auto& [name, values] : tensors_)
    if (!expected.tensors_.contains(name)) found.push_back("unexpected " + name);
  return found;
}

std::vector<MicroBatch> batch_of_step(const LayoutCase& layout, int64_t step) {
  LayoutCase same_data = layout;
  same_data.seed = 4321;
  std::vector<MicroBatch> batch;
  for (int64_t m = 0; m < layout.num_micro_batches; ++m) {
    // Masked unevenly, so that micro-batches differ in their counts of loss tokens.
    const auto masked = [&](int64_t position, int64_t) { return position % (m + 3) == 2; };
    batch.push_back(make_micro_batch(same_data, step * layout.num_micro_batches + m, masked));
  }
  return batch;
}

int64_t state_bytes(const MeshSystem& system) {
  int64_t bytes = 0;
  for (const OptimizerShard& shard : system.optimizer.shards())
    bytes += shard.master.bytes() + shard.exp_avg.bytes() + shard.exp_avg_sq.bytes();
  return bytes;
}

LoadReport load(const std::string& checkpoint, MeshSystem& system,
                const LoadExceptions& exceptions) {
  IoWatchdog watchdog("a rank", std::chrono::milliseconds(0), [](const std::string&) {});
  const Manifest manifest = open_checkpoint(checkpoint, *system.groups.world, watchdog);
  return load_checkpoint(checkpoint, manifest, target_of(system), exceptions, watchdog);
}

SaveOutcome save(CheckpointSaver& saver, const TrainCounters& counters, int64_t num_updates) {
  EXPECT_EQ(saver.start(counters, num_updates), "");
  const std::optional<SaveOutcome> outcome = saver.finish();
  EXPECT_TRUE(outcome.has_value());
  if (!outcome) return {};
  EXPECT_EQ(outcome->problem, "");
  return *outcome;
}

}  // namespace phalanx::test
