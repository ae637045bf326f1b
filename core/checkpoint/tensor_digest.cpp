// Sums of seeded XXH3 hashes.
#include "core/checkpoint/tensor_digest.h"

#include <xxhash.h>

#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr int64_t kLongestLeaf = 16;
constexpr int64_t kCuts = 64;

}  // namespace

int64_t digest_leaf(int64_t columns) {
  int64_t leaf = kLongestLeaf;
  while (leaf > 1 && columns % (kCuts * leaf) != 0) leaf /= 2;
  return leaf;
}

uint64_t tensor_digest(const Tensor& block, std::array<int64_t, 2> offset, int64_t global_columns) {
  const int64_t rows = block.shape[0];
  const int64_t columns = block.shape.rank() == 2 ? block.shape[1] : 1;
  const int64_t leaf = digest_leaf(global_columns);
  check(block.device == Device::cpu && block.shape.rank() <= 2, "a block of shape ",
        block.shape.to_string(), " cannot be summed: it must be a matrix in host memory");
  check(offset[1] % leaf == 0 && columns % leaf == 0, "columns ", offset[1], " to ",
        offset[1] + columns, " of ", global_columns, " begin or end inside a leaf of ", leaf,
        " elements; no layout of up to ", kCuts, " tensor-parallel ranks cuts so");
  const auto leaf_bytes = static_cast<size_t>(leaf * dtype_bytes(block.dtype));
  const int64_t leaves = columns / leaf;
  const auto* bytes = static_cast<const uint8_t*>(block.data);
  uint64_t sum = 0;
  for (int64_t row = 0; row < rows; ++row) {
    auto number = static_cast<uint64_t>(((offset[0] + row) * global_columns + offset[1]) / leaf);
    for (int64_t i = 0; i < leaves; ++i, bytes += leaf_bytes)
      sum += XXH3_64bits_withSeed(bytes, leaf_bytes, number++);
  }
  return sum;
}

}  // namespace phalanx
