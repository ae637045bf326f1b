// The checksum of tensors in checkpoints: XXH3, added up over short leaves so that the checksum of
// a tensor is the sum of those of any rectangles that make it up.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/base/tensor.h"

namespace phalanx {

/// Elements of a row that are hashed at once: the largest power of two up to 16 of which 64 make up
/// a divisor of `columns` (at most 16), else 1. So every cut by up to 64 tensor-parallel ranks
/// falls between leaves.
int64_t digest_leaf(int64_t columns);

/// Sum modulo 2^64 of XXH3(leaf, seed = the leaf's number in the global tensor) over the leaves of
/// `block`, which is host memory [rows, columns of the block] and lies at `offset` (row, column) of
/// a tensor of `global_columns`. The seed tells apart equal leaves that changed places. Throws if
/// the block begins or ends inside a leaf.
///
/// Because it is a sum, it does not depend on how a tensor was cut: a checkpoint read on another
/// mesh is checked on the very bytes that were read, and equal tensors have equal checksums
/// whatever wrote them.
uint64_t tensor_digest(const Tensor& block, std::array<int64_t, 2> offset, int64_t global_columns);

}  // namespace phalanx
