// Layout of shards by HDF5, their frames, and reading by position.
#include "core/checkpoint/shard_file.h"

#include <fmt/format.h>

#include <xxhash.h>

#include <algorithm>
#include <memory>
#include <unordered_map>

#include "data/hdf5_file.h"

namespace phalanx {
namespace {

/// Bytes [begin, end) of a file.
struct Extent {
  int64_t begin, end;
};

std::string extent_text(const Extent& extent) {
  return fmt::format("[{}, {})", extent.begin, extent.end);
}

/// Where the bytes of all parts of all blocks are, ascending; apart from each other and in the
/// file.
std::vector<Extent> block_extents(const SavedShard& shard, DType dtype, const std::string& path) {
  std::vector<Extent> extents;
  extents.reserve(shard.blocks.size() * kNumParts);
  for (const SavedBlock& block : shard.blocks) {
    const int64_t bytes = block.numel() * dtype_bytes(dtype);
    for (const int64_t place : block.place) {
      // Written so that no sum overflows, whatever a damaged manifest says.
      check_intact(0 <= place && 0 <= bytes && bytes <= shard.bytes && place <= shard.bytes - bytes,
                   path, ": ", block.tensor, " has ", bytes, " bytes at ", place,
                   ", which the file of ", shard.bytes, " bytes does not hold");
      extents.push_back({place, place + bytes});
    }
  }
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  for (size_t i = 1; i < extents.size(); ++i)
    check_intact(extents[i - 1].end <= extents[i].begin, path, ": two blocks share bytes, ",
                 extent_text(extents[i - 1]), " and ", extent_text(extents[i]));
  return extents;
}

/// XXH3 over pieces of a file, through a small buffer.
class FileHash {
 public:
  explicit FileHash(const PositionalFile& file) : file_(file), state_(XXH3_createState()) {
    check(state_ != nullptr, "no memory for a checksum");
    XXH3_64bits_reset(state_.get());
  }
  void add(Extent extent) {
    while (extent.begin < extent.end) {
      const int64_t bytes = std::min(extent.end - extent.begin, std::ssize(buffer_));
      file_.read(extent.begin, buffer_.data(), bytes);
      XXH3_64bits_update(state_.get(), buffer_.data(), static_cast<size_t>(bytes));
      extent.begin += bytes;
    }
  }
  uint64_t value() const { return XXH3_64bits_digest(state_.get()); }

 private:
  struct FreeState {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  const PositionalFile& file_;
  std::unique_ptr<XXH3_state_t, FreeState> state_;
  std::vector<char> buffer_ = std::vector<char>(size_t{1} << 18);
};

/// A block's shape as its tensor has it: a vector's block is a vector.
Shape block_shape(const SavedBlock& block, const Shape& global) {
  return global.rank() == 1 ? Shape{block.size[0]} : Shape{block.size[0], block.size[1]};
}

void add_block(Hdf5File& file, const SavedBlock& block, const Shape& global, DType dtype) {
  std::array<int64_t, 2> global_shape{};
  for (int dim = 0; dim < global.rank(); ++dim)
    global_shape[static_cast<size_t>(dim)] = global[dim];
  const auto rank = static_cast<size_t>(global.rank());
  for (int part = 0; part < kNumParts; ++part) {
    const std::string name = dataset_name(block, part);
    file.reserve_dataset(name, block_shape(block, global), dtype);
    file.set_attribute(name, "global_shape", std::span(global_shape).first(rank));
    file.set_attribute(name, "offset", std::span(block.offset).first(rank));
  }
}

}  // namespace

std::string shard_name(int64_t number) {
  return fmt::format("shard_{:05d}.h5", number);
}

std::string dataset_name(const SavedBlock& block, int part) {
  return fmt::format("{}{}@{},{}", kPartPrefix[static_cast<size_t>(part)], block.tensor,
                     block.offset[0], block.offset[1]);
}

int64_t lay_out_shard(const std::string& path, std::span<SavedBlock> blocks, DType dtype,
                      std::span<const SavedTensor> tensors) {
  std::unordered_map<std::string_view, const Shape*> shapes;
  for (const SavedTensor& tensor : tensors) shapes[tensor.name] = &tensor.shape;
  int64_t data_bytes = 0;
  for (const SavedBlock& block : blocks)
    data_bytes += kNumParts * block.numel() * dtype_bytes(dtype);
  const int64_t room = free_bytes(folder_of(path));
  check(data_bytes <= room, "no room for ", path, ": it takes ", data_bytes, " bytes, and ", room,
        " are free; make room or save elsewhere (--save)");

  Hdf5File file = Hdf5File::create(path);
  for (const SavedBlock& block : blocks) {
    const auto shape = shapes.find(block.tensor);
    check(shape != shapes.end() && block.numel() > 0, path, ": a block [", block.size[0], ", ",
          block.size[1], "] of ", block.tensor, ", which is empty or of no tensor");
    add_block(file, block, *shape->second, dtype);
  }
  for (SavedBlock& block : blocks)
    for (int part = 0; part < kNumParts; ++part)
      block.place[static_cast<size_t>(part)] = file.dataset_place(dataset_name(block, part));
  file.publish();
  const int64_t bytes = file_bytes(path);
  reserve_file_if_cheap(path, bytes);
  return bytes;
}

uint64_t frame_digest(const PositionalFile& file, const SavedShard& shard, DType dtype) {
  FileHash hash(file);
  int64_t end = 0;
  for (const Extent& extent : block_extents(shard, dtype, file.path())) {
    hash.add({end, extent.begin});
    end = extent.end;
  }
  hash.add({end, shard.bytes});
  return hash.value();
}

PositionalFile open_shard(const std::string& folder, const SavedShard& shard, DType dtype) {
  const std::string path = folder + "/" + shard.file;
  check_intact(file_exists(path), path, " is missing; expected a file of ", shard.bytes, " bytes");
  PositionalFile file(path, PositionalFile::Access::read);
  check_intact(file.bytes() == shard.bytes, path, ": expected ", shard.bytes, " bytes, found ",
               file.bytes());
  const uint64_t found = frame_digest(file, shard, dtype);
  check_intact(found == shard.frame_digest, path, ": the description of its datasets has changed: ",
               fmt::format("expected checksum {:016x}, found {:016x}", shard.frame_digest, found));
  return file;
}

BlockRange overlap_of(const BlockRange& a, const BlockRange& b) {
  BlockRange result;
  for (const size_t dim : {0U, 1U}) {
    const int64_t begin = std::max(a.offset[dim], b.offset[dim]);
    const int64_t end = std::min(a.offset[dim] + a.size[dim], b.offset[dim] + b.size[dim]);
    result.offset[dim] = begin;
    result.size[dim] = std::max<int64_t>(0, end - begin);
  }
  return result;
}

void read_block_range(const PositionalFile& file, const BlockPart& from, const BlockRange& range,
                      void* target, int64_t target_stride) {
  const SavedBlock& block = from.block;
  const auto [rows, columns] = range.size;
  const int64_t row = range.offset[0] - block.offset[0];
  const int64_t column = range.offset[1] - block.offset[1];
  check(0 <= row && 0 <= rows && row + rows <= block.size[0] && 0 <= column && 0 <= columns &&
            column + columns <= block.size[1],
        file.path(), ": ", dataset_name(block, from.part), " is [", block.size[0], ", ",
        block.size[1], "]; [", rows, ", ", columns, "] at [", range.offset[0], ", ",
        range.offset[1], "] of the tensor is not in it");
  check(columns <= target_stride || rows <= 1, "rows of ", columns,
        " elements do not fit into rows of ", target_stride);
  const int64_t element = dtype_bytes(from.dtype);
  const int64_t place =
      block.place[static_cast<size_t>(from.part)] + (row * block.size[1] + column) * element;
  if (columns == block.size[1] && (columns == target_stride || rows <= 1)) {
    file.read(place, target, rows * columns * element);
    return;
  }
  auto* to = static_cast<std::byte*>(target);
  for (int64_t i = 0; i < rows; ++i)
    file.read(place + i * block.size[1] * element, to + i * target_stride * element,
              columns * element);
}

}  // namespace phalanx
