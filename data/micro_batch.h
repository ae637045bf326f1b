// What a training step consumes: micro-batches of token ids and targets, in host memory.
#pragma once

#include <cstdint>
#include <vector>

namespace phalanx {

/// A position without loss (padding, masked tokens).
inline constexpr int32_t kIgnoreTarget = -1;

/// B sequences of S positions, position-major like every activation. The vectors keep their
/// capacity from step to step, so that a running loader does not allocate.
struct MicroBatch {
  int64_t positions = 0;              // S
  int64_t sequences = 0;              // B
  std::vector<int32_t> tokens;        // [S, B]
  std::vector<int32_t> targets;       // [S, B], kIgnoreTarget where no loss is taken
  std::vector<int32_t> position_ids;  // [S, B] RoPE positions; empty means 0..S-1 in every sequence
  std::vector<int32_t> document_start;  // [B, S] first position of the token's document; empty
                                        // means no document masking
};

/// One data-parallel rank's part of a global batch.
struct GlobalBatch {
  int64_t first_sample = 0;  // consumed samples before this batch, over all ranks
  int64_t num_samples = 0;   // samples of the whole global batch, over all ranks
  std::vector<MicroBatch> micro_batches;
};

}  // namespace phalanx
