// CheckpointReader: rectangles of a checkpoint's tensors, whatever blocks they were written in,
// with their checksums added up on the way.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/checkpoint/manifest.h"
#include "core/checkpoint/shard_file.h"

namespace phalanx {

/// Called with bytes done and bytes in all; from any thread, but from one at a time.
using ByteProgress = std::function<void(int64_t done, int64_t total)>;

/// At most this much of a tensor is held at once by each thread.
inline constexpr int64_t kPieceBytes = int64_t{4} << 20;

/// `range` in pieces of at most `max_bytes` (at least one leaf of a checksum): runs of whole rows,
/// or parts of a row that is longer than that. They begin and end between leaves if `range` does.
std::vector<BlockRange> cut_range(const BlockRange& range, DType dtype, int64_t max_bytes);
/// All of a tensor.
BlockRange whole_range(const SavedTensor& tensor);
/// A matrix of that size (a vector is one of one column) over `data`.
Tensor matrix_over(void* data, const BlockRange& range, DType dtype);

/// One checkpoint. `read` may be called by several threads side by side.
class CheckpointReader {
 public:
  /// Throws CheckpointDamage unless the manifest is whole.
  explicit CheckpointReader(std::string folder);

  const std::string& folder() const { return folder_; }
  const Manifest& manifest() const { return manifest_; }

  /// Reads `range` of one part of a tensor of the manifest into `target` [rows, columns].
  void read(const SavedTensor& tensor, int part, const BlockRange& range, void* target);
  /// The checksum of one part of the whole tensor, as the manifest has it.
  uint64_t digest(const SavedTensor& tensor, int part) const;
  /// Throws CheckpointDamage that names every block, among those that were read as a whole (each
  /// element once), whose bytes are not those that were written.
  void check_what_was_read() const;

 private:
  struct Source {
    const SavedShard* shard;
    const SavedBlock* block;
    std::array<uint64_t, kNumParts> digest{};  // of what was read so far
    std::array<int64_t, kNumParts> elements{};
  };
  void read_overlap(Source& source, int part, const BlockRange& overlap, void* target);

  std::string folder_;
  Manifest manifest_;
  std::map<std::string, std::vector<Source>> sources_;  // by tensor
};

/// "FOLDER/shard_00003.h5: optimizer.exp_avg/NAME, rows 0 to 16, columns 0 to 32: checksum is ...,
/// expected ...".
std::string digest_damage(const std::string& file, const SavedBlock& block, int part,
                          uint64_t found);

}  // namespace phalanx
