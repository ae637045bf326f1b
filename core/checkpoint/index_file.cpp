// Virtual datasets of index.h5.
#include "core/checkpoint/index_file.h"

#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/checkpoint/shard_file.h"
#include "data/hdf5_file.h"

namespace phalanx {
namespace {

/// A block and the shard it is in.
struct Source {
  const SavedShard* shard;
  const SavedBlock* block;
};
using Sources = std::unordered_map<std::string_view, std::vector<Source>>;

Sources sources_by_tensor(const Manifest& manifest) {
  Sources sources;
  for (const SavedShard& shard : manifest.shards)
    for (const SavedBlock& block : shard.blocks) sources[block.tensor].push_back({&shard, &block});
  return sources;
}

std::vector<VirtualBlock> virtual_blocks(const std::vector<Source>& sources, int rank, int part) {
  std::vector<VirtualBlock> blocks;
  for (const auto& [shard, block] : sources) {
    const Shape shape = rank == 1 ? Shape{block->size[0]} : Shape{block->size[0], block->size[1]};
    blocks.push_back({.file = shard->file,
                      .dataset = dataset_name(*block, part),
                      .shape = shape,
                      .first = block->offset});
  }
  return blocks;
}

}  // namespace

void write_index(const std::string& path, const Manifest& manifest) {
  Hdf5File file = Hdf5File::create(path);
  file.set_attribute("/", "step", std::to_string(manifest.counters.step));
  file.set_attribute("/", "consumed_samples", std::to_string(manifest.counters.consumed_samples));
  file.set_attribute("/", "tokenizer_hash", manifest.tokenizer_hash);
  file.set_attribute("/", "config", manifest.config_ini);
  const Sources sources = sources_by_tensor(manifest);
  for (const SavedTensor& tensor : manifest.tensors) {
    const auto found = sources.find(tensor.name);
    check(found != sources.end(), path, ": no shard has a block of ", tensor.name);
    for (int part = 0; part < kNumParts; ++part)
      file.create_virtual_dataset(kPartPrefix[static_cast<size_t>(part)] + tensor.name,
                                  tensor.shape, manifest.dtype,
                                  virtual_blocks(found->second, tensor.shape.rank(), part));
  }
  file.publish();
}

}  // namespace phalanx
