// Shard files: HDF5 files whose datasets' bytes are written and read by position, so that HDF5 only
// describes them. Because then a full disk shows before anything is written, no lock of the library
// is held while gigabytes move, and a damaged file is found before the library meets it.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/checkpoint/manifest.h"
#include "data/file_io.h"

namespace phalanx {

/// "shard_00003.h5".
std::string shard_name(int64_t number);
/// Name of a block's dataset: prefix of the part, tensor, "@row,column".
std::string dataset_name(const SavedBlock& block, int part);

/// Makes `path`, in a folder that is the writer's own, an HDF5 file with one contiguous dataset per
/// block and part, its space on disk taken, and fills in `place` of every block. A file that is
/// there is replaced. Returns the number of bytes of the file. Throws if the disk has no room.
/// `tensors` gives the global shapes, kept as the attributes "global_shape" and "offset" of each
/// dataset. The same blocks give the same bytes.
int64_t lay_out_shard(const std::string& path, std::span<SavedBlock> blocks, DType dtype,
                      std::span<const SavedTensor> tensors);

/// XXH3 over the bytes of `file` (of `shard.bytes`) outside the blocks of `shard`: all that HDF5
/// will interpret. Throws CheckpointDamage if two blocks share bytes or one is not in the file.
uint64_t frame_digest(const PositionalFile& file, const SavedShard& shard, DType dtype);

/// Throws CheckpointDamage unless FOLDER/shard.file is there, has its size and its frame. Opened
/// for reading.
PositionalFile open_shard(const std::string& folder, const SavedShard& shard, DType dtype);

/// Rows [row, row + rows) and columns [column, column + columns) of the global tensor, out of one
/// part of `block`, which must hold them; into `target` [rows, columns] with rows `target_stride`
/// elements apart. Reads exactly those bytes.
struct BlockPart {
  const SavedBlock& block;
  int part;
  DType dtype;
};
struct BlockRange {
  std::array<int64_t, 2> offset{};  // in the global tensor
  std::array<int64_t, 2> size{};
};
/// What two rectangles share; a size is 0 where they share nothing.
BlockRange overlap_of(const BlockRange& a, const BlockRange& b);
void read_block_range(const PositionalFile& file, const BlockPart& from, const BlockRange& range,
                      void* target, int64_t target_stride);

}  // namespace phalanx
