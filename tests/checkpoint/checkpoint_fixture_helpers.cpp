// Writing and spoiling checkpoints without the trainer.
#include <cstdio>
#include <fstream>

#include "core/checkpoint/checkpoint_reader.h"
#include "core/checkpoint/seal.h"
#include "core/checkpoint/shard_file.h"
#include "core/checkpoint/tensor_digest.h"
#include "data/file_io.h"
#include "kernels/base/philox.h"
#include "tests/checkpoint/checkpoint_fixture.h"

namespace phalanx {
namespace {

std::vector<SavedBlock> cut(const SavedTensor& tensor, const FixtureCheckpoint& fixture) {
  const auto [rows, columns] = matrix_size(tensor.shape);
  const int64_t column_cuts = tensor.shape.rank() == 2 ? fixture.column_cuts : 1;
  std::vector<SavedBlock> blocks;
  for (int64_t r = 0; r < fixture.row_cuts; ++r)
    for (int64_t c = 0; c < column_cuts; ++c) {
      SavedBlock block{.tensor = tensor.name};
      block.offset = {rows * r / fixture.row_cuts, columns * c / column_cuts};
      block.size = {rows * (r + 1) / fixture.row_cuts - block.offset[0],
                    columns * (c + 1) / column_cuts - block.offset[1]};
      if (block.numel() > 0) blocks.push_back(block);
    }
  return blocks;
}

template <class T>
std::vector<T> values_of(const SavedBlock& block, size_t part, int64_t columns,
                         const FixtureCheckpoint& fixture) {
  const std::string name = kPartPrefix[part] + block.tensor;
  const Philox random(fixture.seed, name);
  std::vector<T> values;
  for (int64_t row = 0; row < block.size[0]; ++row)
    for (int64_t column = 0; column < block.size[1]; ++column) {
      const int64_t index = (block.offset[0] + row) * columns + block.offset[1] + column;
      values.push_back(static_cast<T>(
          fixture.value ? fixture.value(name, index)
                        : random.truncated_normal(static_cast<uint64_t>(index), 3.0)));
    }
  return values;
}

template <class T>
void write_block(PositionalFile& file, SavedBlock& block, int64_t columns,
                 const FixtureCheckpoint& fixture) {
  for (size_t part = 0; part < kNumParts; ++part) {
    std::vector<T> values = values_of<T>(block, part, columns, fixture);
    const Tensor tensor = cpu_tensor(values.data(), {block.size[0], block.size[1]});
    block.digest[part] = tensor_digest(tensor, block.offset, columns);
    file.write(block.place[part], tensor.data, tensor.bytes());
  }
}

void write_shard(const std::string& folder, SavedShard& shard, const Manifest& manifest,
                 const FixtureCheckpoint& fixture) {
  const std::string path = folder + "/" + shard.file;
  shard.bytes = lay_out_shard(path, shard.blocks, fixture.dtype, fixture.tensors);
  PositionalFile file(path, PositionalFile::Access::write);
  for (SavedBlock& block : shard.blocks) {
    const int64_t columns = matrix_size(manifest.find(block.tensor)->shape)[1];
    if (fixture.dtype == DType::f64)
      write_block<double>(file, block, columns, fixture);
    else
      write_block<float>(file, block, columns, fixture);
  }
  file.sync();
  shard.frame_digest = frame_digest(file, shard, fixture.dtype);
}

}  // namespace

Manifest write_fixture(const std::string& folder, const FixtureCheckpoint& fixture) {
  make_folders(folder);
  Manifest manifest{.counters = {.step = fixture.step,
                                 .consumed_samples = 8 * fixture.step,
                                 .consumed_tokens = 128 * fixture.step},
                    .num_updates = fixture.step,
                    .config_ini = fixture.config_ini,
                    .tokenizer_hash = "0123abcd",
                    .code_version = "0.1.0",
                    .layout = "tp 1, pp 1",
                    .world_size = fixture.num_shards,
                    .epoch = 1,
                    .dtype = fixture.dtype,
                    .tensors = fixture.tensors};
  for (int64_t i = 0; i < fixture.num_shards; ++i)
    manifest.shards.push_back({.file = shard_name(i), .bytes = 0, .frame_digest = 0, .blocks = {}});
  size_t next = 0;
  for (const SavedTensor& tensor : fixture.tensors)
    for (const SavedBlock& block : cut(tensor, fixture))
      manifest.shards[next++ % manifest.shards.size()].blocks.push_back(block);
  for (SavedShard& shard : manifest.shards) write_shard(folder, shard, manifest, fixture);
  seal_checkpoint(folder, manifest);
  return manifest;
}

std::vector<double> read_fixture(const std::string& folder, const std::string& tensor, int part) {
  const Manifest manifest = read_checkpoint_manifest(folder);
  const auto [rows, columns] = matrix_size(manifest.find(tensor)->shape);
  const int64_t element = dtype_bytes(manifest.dtype);
  std::vector<double> values(static_cast<size_t>(rows * columns));
  for (const SavedShard& shard : manifest.shards) {
    std::ifstream file(folder + "/" + shard.file, std::ios::binary);
    for (const SavedBlock& block : shard.blocks) {
      if (block.tensor != tensor) continue;
      for (int64_t i = 0; i < block.numel(); ++i) {
        double wide = 0;
        float narrow = 0;
        file.seekg(block.place[static_cast<size_t>(part)] + i * element);
        file.read(element == 8 ? reinterpret_cast<char*>(&wide) : reinterpret_cast<char*>(&narrow),
                  element);
        const int64_t row = block.offset[0] + i / block.size[1];
        const int64_t column = block.offset[1] + i % block.size[1];
        values[static_cast<size_t>(row * columns + column)] = element == 8 ? wide : narrow;
      }
    }
  }
  return values;
}

void flip_bit(const std::string& path, int64_t byte, int bit) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(byte);
  const int value = file.get();
  check(value >= 0, path, " has no byte ", byte);
  file.seekp(byte);
  file.put(static_cast<char>(value ^ (1 << bit)));
}

}  // namespace phalanx
