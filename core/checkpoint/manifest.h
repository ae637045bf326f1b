// Manifest: what a checkpoint consists of, as the text of its manifest.json.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/checkpoint/train_counters.h"
#include "kernels/base/error.h"
#include "kernels/base/tensor.h"

namespace phalanx {

/// A checkpoint that is not what was written: cut short, changed, incomplete. Names the file, the
/// tensor if it is in one, what was expected and what was found. An older checkpoint may still do.
class CheckpointDamage : public Error {
 public:
  using Error::Error;
};
template <class... Args>
void check_intact(bool ok, const Args&... message) {
  if (!ok) throw CheckpointDamage(detail::concatenate(message...));
}

/// The three tensors kept per parameter, under the parameter's name with a prefix: the weights
/// (f32 masters of a bf16 run, whose compute weights are their rounding) and AdamW's moments.
inline constexpr int kNumParts = 3;
inline constexpr std::array<const char*, kNumParts> kPartPrefix{"", "optimizer.exp_avg/",
                                                                "optimizer.exp_avg_sq/"};

/// A rectangle of one parameter and where its three parts are in a shard. Rows are contiguous.
struct SavedBlock {
  std::string tensor;                        // "layers.03.mlp.gate.weight"
  std::array<int64_t, 2> offset{};           // first row and column in the global tensor
  std::array<int64_t, 2> size{};             // rows and columns
  std::array<int64_t, kNumParts> place{};    // first byte in the file
  std::array<uint64_t, kNumParts> digest{};  // tensor_digest

  int64_t numel() const { return size[0] * size[1]; }
  bool operator==(const SavedBlock&) const = default;
};

struct SavedShard {
  std::string file;           // "shard_00003.h5"
  int64_t bytes = 0;          // of the file
  uint64_t frame_digest = 0;  // XXH3 of all its bytes outside of blocks, in order
  std::vector<SavedBlock> blocks;

  bool operator==(const SavedShard&) const = default;
};

struct SavedTensor {
  std::string name;
  Shape shape;  // global, 1-D or 2-D

  bool operator==(const SavedTensor&) const = default;
};

struct Manifest {
  TrainCounters counters;
  int64_t num_updates = 0;  // of the optimizer: steps without the skipped ones
  std::string config_ini;   // the run's configuration, as its config.ini
  std::string tokenizer_hash;
  std::string code_version;
  std::string layout;  // "tp 2, pp 1, ..." of the run that wrote it
  int64_t world_size = 1;
  int64_t epoch = 0;          // number of the job start that wrote it
  int64_t order_samples = 0;  // that the data order was made for: another number is another order
  DType dtype = DType::f32;   // of all tensors: f32, or f64 of an f64 run
  std::vector<SavedTensor> tensors;  // by name
  std::vector<SavedShard> shards;    // by file
  int64_t index_bytes = 0;
  uint64_t index_digest = 0;  // XXH3 of index.h5

  const SavedTensor* find(const std::string& name) const;
  /// Bytes of all blocks.
  int64_t data_bytes() const;
  bool operator==(const Manifest&) const = default;
};

/// [rows, columns]; a vector is a matrix of one column.
std::array<int64_t, 2> matrix_size(const Shape& shape);

std::string manifest_json(const Manifest& manifest);

/// One shard as text, and back: how ranks tell rank 0 what they wrote.
std::string shard_json(const SavedShard& shard);
/// Any text is safe to read: throws CheckpointDamage.
SavedShard parse_shard(const std::string& text);

/// Reads what manifest_json wrote. Any text is safe to read. Throws CheckpointDamage, naming
/// `path`, unless it is a whole manifest: names and files as they must be, blocks inside their
/// tensors and files, every element of every tensor in exactly one block, no two blocks over each
/// other.
Manifest parse_manifest(const std::string& text, const std::string& path);

/// The content of COMMITTED: says that `manifest_text`, of that iteration, is whole.
std::string committed_text(int64_t iteration, const std::string& manifest_text);

/// Reads FOLDER/COMMITTED and FOLDER/manifest.json. Throws CheckpointDamage if either is missing or
/// they do not fit together, or FOLDER is called after another iteration.
Manifest read_checkpoint_manifest(const std::string& folder);

}  // namespace phalanx
