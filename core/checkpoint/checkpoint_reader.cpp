// Gathering rectangles from the blocks they overlap.
#include "core/checkpoint/checkpoint_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/checkpoint/tensor_digest.h"

namespace phalanx {
namespace {

// A multiple of every length of a checksum's leaf.
constexpr int64_t kLeafMultiple = 16;

}  // namespace

std::vector<BlockRange> cut_range(const BlockRange& range, DType dtype, int64_t max_bytes) {
  const int64_t max_elements = std::max(max_bytes / dtype_bytes(dtype), kLeafMultiple);
  const int64_t columns = std::min(range.size[1], max_elements / kLeafMultiple * kLeafMultiple);
  const int64_t rows = columns < range.size[1]
                           ? 1
                           : std::max<int64_t>(1, max_elements / std::max(columns, int64_t{1}));
  const int64_t row_end = range.offset[0] + range.size[0];
  const int64_t column_end = range.offset[1] + range.size[1];
  std::vector<BlockRange> pieces;
  for (int64_t row = range.offset[0]; row < row_end; row += rows)
    for (int64_t column = range.offset[1]; column < column_end; column += columns)
      pieces.push_back(
          {.offset = {row, column},
           .size = {std::min(rows, row_end - row), std::min(columns, column_end - column)}});
  return pieces;
}

BlockRange whole_range(const SavedTensor& tensor) {
  return {.offset = {0, 0}, .size = matrix_size(tensor.shape)};
}

Tensor matrix_over(void* data, const BlockRange& range, DType dtype) {
  return {data, Shape{range.size[0], range.size[1]}, dtype, Device::cpu};
}

CheckpointReader::CheckpointReader(std::string folder)
    : folder_(std::move(folder)), manifest_(read_checkpoint_manifest(folder_)) {
  for (const SavedShard& shard : manifest_.shards)
    for (const SavedBlock& block : shard.blocks)
      sources_[block.tensor].push_back({.shard = &shard, .block = &block});
}

void CheckpointReader::read(const SavedTensor& tensor, int part, const BlockRange& range,
                            void* target) {
  const int64_t element = dtype_bytes(manifest_.dtype);
  std::vector<uint8_t> buffer;
  for (Source& source : sources_.at(tensor.name)) {
    const BlockRange overlap = overlap_of(range, {source.block->offset, source.block->size});
    const int64_t row_bytes = overlap.size[1] * element;
    if (overlap.size[0] * row_bytes == 0) continue;
    const int64_t first = (overlap.offset[0] - range.offset[0]) * range.size[1] +
                          (overlap.offset[1] - range.offset[1]);
    uint8_t* place = static_cast<uint8_t*>(target) + first * element;
    if (overlap.size[1] == range.size[1]) {
      read_overlap(source, part, overlap, place);
      continue;
    }
    // By way of a buffer, because the checksum needs it in one piece, and one long read is faster
    // than many short ones.
    buffer.resize(static_cast<size_t>(overlap.size[0] * row_bytes));
    read_overlap(source, part, overlap, buffer.data());
    for (int64_t row = 0; row < overlap.size[0]; ++row)
      std::memcpy(place + row * range.size[1] * element, buffer.data() + row * row_bytes,
                  static_cast<size_t>(row_bytes));
  }
}

void CheckpointReader::read_overlap(Source& source, int part, const BlockRange& overlap,
                                    void* target) {
  // Opened each time, because a checkpoint may have more shards than a process may open files.
  const PositionalFile file(folder_ + "/" + source.shard->file, PositionalFile::Access::read);
  read_block_range(file, {*source.block, part, manifest_.dtype}, overlap, target, overlap.size[1]);
  const int64_t columns = matrix_size(manifest_.find(source.block->tensor)->shape)[1];
  const Tensor values = matrix_over(target, overlap, manifest_.dtype);
  const auto index = static_cast<size_t>(part);
  std::atomic_ref(source.digest[index]) += tensor_digest(values, overlap.offset, columns);
  std::atomic_ref(source.elements[index]) += values.numel();
}

uint64_t CheckpointReader::digest(const SavedTensor& tensor, int part) const {
  uint64_t sum = 0;
  for (const Source& source : sources_.at(tensor.name))
    sum += source.block->digest[static_cast<size_t>(part)];
  return sum;
}

void CheckpointReader::check_what_was_read() const {
  std::string damages;
  for (const auto& [name, sources] : sources_)
    for (const Source& source : sources)
      for (size_t part = 0; part < kNumParts; ++part)
        if (source.elements[part] == source.block->numel() &&
            source.digest[part] != source.block->digest[part])
          damages += "\n  " + digest_damage(folder_ + "/" + source.shard->file, *source.block,
                                            static_cast<int>(part), source.digest[part]);
  check_intact(damages.empty(), folder_, " is damaged:", damages);
}

std::string digest_damage(const std::string& file, const SavedBlock& block, int part,
                          uint64_t found) {
  const auto index = static_cast<size_t>(part);
  return fmt::format(
      "{}: {}{}, rows {} to {}, columns {} to {}: checksum is {:016x}, expected {:016x}", file,
      kPartPrefix[index], block.tensor, block.offset[0], block.offset[0] + block.size[0],
      block.offset[1], block.offset[1] + block.size[1], found, block.digest[index]);
}

}  // namespace phalanx
