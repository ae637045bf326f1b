// SampleCheckpoint: a small checkpoint folder of three shards whose rectangles are cut at random.
#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "core/checkpoint/index_file.h"
#include "core/checkpoint/shard_file.h"

namespace phalanx {

/// Writes shards, index and nothing else; digests of blocks stay 0. The element at `index` of part
/// `part` of tensor `tensor` is part * 2^22 + tensor * 2^16 + index, which every f32 tells apart.
template <class T>
class SampleCheckpoint {
 public:
  static constexpr int kNumShards = 3;

  SampleCheckpoint(std::string folder, uint32_t seed) : folder_(std::move(folder)), random_(seed) {
    manifest_.counters = {.step = 12, .consumed_samples = 345};
    manifest_.config_ini = "seed = 1\n";
    manifest_.tokenizer_hash = "abc";
    manifest_.dtype = DTypeOf<T>::value;
    manifest_.tensors = {{"embedding.weight", {37, 24}},
                         {"layers.00.norm.weight", {119}},
                         {"layers.03.mlp.gate.weight", {64, 48}},
                         {"layers.03.one", {1, 1}},
                         {"output.weight", {96, 7}}};
    make_folders(folder_);
    make_shards();
    for (SavedShard& shard : manifest_.shards) write(shard);
    write_index(folder_ + "/index.h5", manifest_);
  }

  const std::string& folder() const { return folder_; }
  const Manifest& manifest() const { return manifest_; }
  std::vector<T> values(size_t tensor, int part) const {
    std::vector<T> values(static_cast<size_t>(manifest_.tensors[tensor].shape.numel()));
    for (size_t i = 0; i < values.size(); ++i) values[i] = value(tensor, part, i);
    return values;
  }
  static T value(size_t tensor, int part, size_t index) {
    return static_cast<T>((static_cast<size_t>(part) << 22) + (tensor << 16) + index);
  }

 private:
  /// 0, some numbers between, and `size`.
  std::vector<int64_t> cuts(int64_t size) {
    std::vector<int64_t> cuts{0, size};
    for (int i = 0; i < 3; ++i)
      cuts.push_back(std::uniform_int_distribution<int64_t>(0, size)(random_));
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    return cuts;
  }
  void cut(const SavedTensor& tensor, std::vector<SavedBlock>& blocks) {
    const auto [rows, columns] = matrix_size(tensor.shape);
    const auto column_cuts = cuts(columns);
    for (size_t j = 1; j < column_cuts.size(); ++j) {
      const auto row_cuts = cuts(rows);
      for (size_t i = 1; i < row_cuts.size(); ++i)
        blocks.push_back(
            {.tensor = tensor.name,
             .offset = {row_cuts[i - 1], column_cuts[j - 1]},
             .size = {row_cuts[i] - row_cuts[i - 1], column_cuts[j] - column_cuts[j - 1]}});
    }
  }
  void make_shards() {
    std::vector<SavedBlock> blocks;
    for (const SavedTensor& tensor : manifest_.tensors) cut(tensor, blocks);
    std::shuffle(blocks.begin(), blocks.end(), random_);
    manifest_.shards.resize(kNumShards);
    for (size_t i = 0; i < kNumShards; ++i)
      manifest_.shards[i].file = shard_name(static_cast<int64_t>(i));
    for (size_t i = 0; i < blocks.size(); ++i)
      manifest_.shards[i % kNumShards].blocks.push_back(blocks[i]);
  }
  void write(SavedShard& shard) {
    const std::string path = folder_ + "/" + shard.file;
    shard.bytes = lay_out_shard(path, shard.blocks, manifest_.dtype, manifest_.tensors);
    PositionalFile file(path, PositionalFile::Access::write);
    for (const SavedBlock& block : shard.blocks)
      for (int part = 0; part < kNumParts; ++part) write(file, block, part);
    file.sync();
    shard.frame_digest = frame_digest(file, shard, manifest_.dtype);
  }
  void write(PositionalFile& file, const SavedBlock& block, int part) {
    size_t tensor = 0;
    while (manifest_.tensors[tensor].name != block.tensor) ++tensor;
    const int64_t columns = matrix_size(manifest_.tensors[tensor].shape)[1];
    std::vector<T> values;
    for (int64_t r = 0; r < block.size[0]; ++r)
      for (int64_t c = 0; c < block.size[1]; ++c)
        values.push_back(
            value(tensor, part,
                  static_cast<size_t>((block.offset[0] + r) * columns + block.offset[1] + c)));
    file.write(block.place[static_cast<size_t>(part)], values.data(),
               std::ssize(values) * static_cast<int64_t>(sizeof(T)));
  }

  std::string folder_;
  std::mt19937 random_;
  Manifest manifest_;
};

}  // namespace phalanx
