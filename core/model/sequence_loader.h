// SequenceLoader: brings this rank's positions of a micro-batch to the device.
#pragma once

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
class SequenceLoader {
 public:
  /// `rope_table` [S * K or S, D] belongs to the caller.
  SequenceLoader(Backend& backend, const ProcessGroup& cp, const StageShape& shape,
                 const Tensor& rope_table);

  /// Positions of this rank: S / cp.
  int64_t local_positions() const { return local_positions_; }
  /// Empties the state's arena and fills in ids, targets and inputs.
  void load(const MicroBatch& batch, ChunkState& state) const;

 private:
  Tensor upload(Arena& arena, const char* name, const std::vector<int32_t>& host) const;
  Tensor upload_document_start(Arena& arena, const std::vector<int32_t>& host) const;
  Tensor position_ids(Arena& arena, const std::vector<int32_t>& host) const;

  Backend& ops_;
  StageShape shape_;
  std::vector<PositionRange> ranges_;
  int64_t local_positions_ = 0;
  Tensor rope_table_;
  std::vector<int32_t> own_positions_;  // [S/cp, B]; empty where they are 0, 1, 2, ...
};

}  // namespace phalanx
