// How much memory a run needs, known before any of it is taken.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/model/phd_stage.h"

namespace phalanx {

/// Each of the few dozen pieces that are cut from a block is rounded up to whole lines.
inline constexpr int64_t kRoundingBytes = int64_t{64} << 10;

/// Bytes of one rank.
struct MemoryNeeds {
  int64_t weights = 0;
  int64_t gradients = 0;
  int64_t optimizer = 0;    // this rank's shard of masters and moments
  int64_t activations = 0;  // kept between forward and backward, all slots
  int64_t scratch = 0;      // activations' scratch and fixed tables
  int64_t workspace = 0;    // of the ops themselves, and what rounding up costs
  int64_t driver = 0;       // left to CUDA: code of kernels as they are first used, queues, graphs
  int64_t snapshot = 0;     // this rank's masters and moments once more, while they are saved
  int64_t staging = 0;      // that copies between host and GPU go through
  int64_t num_slots = 1;    // micro-batches in flight, all chunks together
  std::vector<std::pair<std::string, int64_t>> largest;  // activations at their peak

  Device device = Device::cpu;

  /// Of the device's own memory, and of the host's: a copy for checkpoints is always there.
  int64_t on_device() const {
    return weights + gradients + optimizer + activations + scratch + workspace + driver +
           (device == Device::cpu ? on_host() : 0);
  }
  /// That one block of device memory has to hold.
  int64_t block() const { return on_device() - driver; }
  int64_t on_host() const { return snapshot + staging; }
  int64_t total() const { return on_device() + (device == Device::cpu ? 0 : on_host()); }
};

/// How the gradients of a stage are reduced in a layout. Its parameters are to be allocated without
/// the units: the layers whose weights the data-parallel ranks share out.
GradientBuffer::Options gradient_options(const PhdStage& stage, const ParallelConfig& parallel);

/// Needs of training with the parameters registered in `store`.
struct MemoryQuestion {
  const ParameterStore& store;
  const ProcessGroups& groups;
  const ParallelConfig& parallel;
  StageShape shape;
  DType dtype;
  bool saves;  // checkpoints are written
  StageSlots slots;
  Device device = Device::cpu;
};
MemoryNeeds memory_needs(PhdStage& stage, const MemoryQuestion& question);

/// The table printed at the start of a run, several lines.
std::string memory_table(const MemoryNeeds& needs);

}  // namespace phalanx
