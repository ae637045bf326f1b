// GlobalState: all tensors of a training system whole, gathered from thread ranks, bit by bit; and
// what tests of saving share.
#pragma once

#include <array>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "core/checkpoint/checkpoint_loader.h"
#include "core/checkpoint/checkpoint_saver.h"
#include "tests/mesh/mesh_system.h"

namespace phalanx::test {

/// Compute weights, masters and both moments. Ranks add their parts from their own threads.
class GlobalState {
 public:
  static constexpr size_t kNumValues = 4;
  static constexpr std::array<const char*, kNumValues> kValueNames{"weights", "masters", "exp_avg",
                                                                   "exp_avg_sq"};

  /// What this rank holds. An element that another rank also holds must have the same bits there.
  void add(MeshSystem& system);
  /// Names of elements that no rank had, that ranks had differently, and that differ from
  /// `expected` ("exp_avg of head.weight"); compute weights only if both have the same dtype.
  std::vector<std::string> problems() const;
  std::vector<std::string> differences(const GlobalState& expected) const;
  int64_t num_tensors() const { return std::ssize(tensors_); }

 private:
  struct Values {
    int64_t element = 0;  // bytes
    std::vector<uint8_t> bytes;
    std::vector<bool> known;
  };
  struct Rectangle {
    std::string name;
    Shape global_shape;
    std::array<int64_t, 2> offset{};
  };
  void add(const Rectangle& place, size_t which, const Tensor& values);

  mutable std::mutex mutex_;
  std::map<std::string, std::array<Values, kNumValues>> tensors_;
  std::vector<std::string> conflicts_;
};

/// The text of a Failure that `action` throws.
template <class Failure, class Action>
std::string failure_of(Action&& action) {
  try {
    action();
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "no such failure";
}

/// Micro-batches of step `step`, the same whatever the mesh and the seed of the weights.
std::vector<MicroBatch> batch_of_step(const LayoutCase& layout, int64_t step);

inline SaveSource source_of(MeshSystem& system) {
  return {.store = system.store,
          .shards = system.optimizer.shards(),
          .backend = system.backend,
          .world = *system.groups.world};
}
inline LoadTarget target_of(MeshSystem& system) {
  return {.store = system.store,
          .optimizer = system.optimizer,
          .gradients = system.gradients,
          .backend = system.backend,
          .world = *system.groups.world};
}
/// Of this rank's masters and moments.
int64_t state_bytes(const MeshSystem& system);

/// Opens and loads.
LoadReport load(const std::string& checkpoint, MeshSystem& system,
                const LoadExceptions& exceptions = {});
/// Saves as iteration `counters.step`; expects that it becomes durable.
SaveOutcome save(CheckpointSaver& saver, const TrainCounters& counters, int64_t num_updates);

}  // namespace phalanx::test
