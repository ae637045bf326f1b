// What the numbers of a checkpoint's tensors look like.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/checkpoint/checkpoint_reader.h"

namespace phalanx {

/// Of one part of one tensor. Sums are f64; mean, rms and max_abs are of the finite elements.
struct TensorStatistics {
  std::string name;  // with the part's prefix
  Shape shape;
  double mean = 0;
  double rms = 0;
  double max_abs = 0;
  int64_t num_nan = 0;
  int64_t num_infinite = 0;
};

/// All parts of all tensors of the manifest, by tensor, then part; read in pieces by `threads`
/// threads (0: one per core). Checks what it reads: throws CheckpointDamage.
std::vector<TensorStatistics> tensor_statistics(CheckpointReader& reader, int threads,
                                                const ByteProgress& progress = {});

}  // namespace phalanx
