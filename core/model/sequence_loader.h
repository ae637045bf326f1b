// SequenceLoader: brings this rank's positions of a step's micro-batches to the device.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "core/model/model_chunk.h"
#include "data/micro_batch.h"
#include "parallel/context_parallel.h"

namespace phalanx {

/// Sizes that fix every activation.
struct StageShape {
  int64_t positions = 0;  // S, of whole sequences
  int64_t sequences = 0;  // B, micro-batch size
  bool operator==(const StageShape&) const = default;
};

/// The loader of data gives whole sequences to every context-parallel rank; each takes its ranges.
/// The micro-batches of a step go to the device together, in one copy that a device can make beside
/// the update of the step before.
class SequenceLoader {
 public:
  /// `rope_table` [S * K or S, D] belongs to the caller.
  SequenceLoader(Backend& backend, const ProcessGroup& cp, const StageShape& shape,
                 const Tensor& rope_table);

  /// Positions of this rank: S / cp.
  int64_t local_positions() const { return local_positions_; }
  /// Device memory of steps of `micro_batches`.
  int64_t bytes(int64_t micro_batches) const;
  /// Takes that memory; without a call the first step of so many does.
  void allocate(int64_t micro_batches);

  /// `idle`: nothing that reads the step before is still under way on the device.
  enum class DeviceState : uint8_t { busy, idle };
  /// Brings these micro-batches, which stay the caller's until the next call.
  void begin_step(std::span<const MicroBatch> micro_batches, DeviceState device);
  /// Empties the state's arena and points ids, targets and inputs at those of `micro_batch`.
  void load(int64_t micro_batch, ChunkState& state) const;
  /// The same, but where every call finds them: copied there on the device. For recorded ops, which
  /// read the same memory each time.
  void load_fixed(int64_t micro_batch, ChunkState& state) const;

 private:
  enum Part : uint8_t { tokens, targets, position_ids, document_start };
  static constexpr int64_t kNumParts = 4;

  int64_t part_numel() const;
  Tensor words(int64_t micro_batch) const;
  void pack(const MicroBatch& batch, int32_t* to) const;
  void pack_positions(const std::vector<int32_t>& host, int32_t* to) const;
  void pack_document_start(const std::vector<int32_t>& host, int32_t* to) const;
  void point(const MicroBatch& batch, const Tensor& words, ChunkState& state) const;

  Backend& ops_;
  StageShape shape_;
  std::vector<PositionRange> ranges_;
  int64_t local_positions_ = 0;
  Tensor rope_table_;
  std::vector<int32_t> own_positions_;  // [S/cp, B]; empty where they are 0, 1, 2, ...
  std::span<const MicroBatch> batches_;
  std::vector<int32_t> host_;  // what is brought, part after part
  std::shared_ptr<void> block_;
  int64_t capacity_ = 0;  // micro-batches; one more is where recorded ops find theirs
};

}  // namespace phalanx
