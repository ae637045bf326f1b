// By what two checkpoints differ.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/checkpoint/checkpoint_reader.h"

namespace phalanx {

/// One part of a tensor that both have, in the same shape.
struct TensorDifference {
  std::string name;  // with the part's prefix
  int64_t num_elements = 0;
  int64_t num_differing = 0;  // in any bit; with different dtypes: in value
  double max_abs = 0;         // of a - b; NaN if a difference is
  double relative_rms = 0;    // rms(a - b) / rms(a); infinite if a is zero
};

struct CheckpointDifference {
  std::vector<std::string> scalars;  // "step: 100 | 200"
  std::vector<std::string> only_first;
  std::vector<std::string> only_second;
  std::vector<std::string> shapes;        // "NAME: [4, 8] | [8, 8]"
  std::vector<TensorDifference> tensors;  // those that differ
  int64_t num_equal = 0;                  // parts of tensors that are the same in every bit
  int64_t num_equal_by_checksum = 0;      // of these, not read: their checksums are equal

  bool same() const {
    return scalars.empty() && only_first.empty() && only_second.empty() && shapes.empty() &&
           tensors.empty();
  }
};

/// Compares counters, tokenizer, dtype and tensors, however either was cut into blocks, but not the
/// configurations' text. What has equal checksums in both manifests is not read. Tensors that were
/// read are checked: throws CheckpointDamage.
CheckpointDifference compare_checkpoints(CheckpointReader& first, CheckpointReader& second,
                                         int threads, const ByteProgress& progress = {});

}  // namespace phalanx
