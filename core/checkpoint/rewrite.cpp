// Streams from a CheckpointReader into new files.
#include "core/checkpoint/rewrite.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <system_error>

#include "core/checkpoint/save_folder.h"
#include "core/checkpoint/save_names.h"
#include "core/checkpoint/seal.h"
#include "core/checkpoint/tensor_digest.h"
#include "core/checkpoint/weights_info.h"
#include "data/file_io.h"
#include "data/hdf5_file.h"

namespace phalanx {
namespace {

// Names have five digits, and their order is that of the numbers.
constexpr int64_t kMostShards = 100'000;

/// Blocks of whole rows, in the order of the tensors; shard s ends with the row at which
/// (s + 1) / num_shards of all elements are passed.
std::vector<SavedShard> balanced_shards(const Manifest& manifest, int64_t num_shards) {
  std::vector<SavedShard> shards(static_cast<size_t>(num_shards));
  for (int64_t i = 0; i < num_shards; ++i) shards[static_cast<size_t>(i)].file = shard_name(i);
  const double total = static_cast<double>(manifest.data_bytes()) /
                       static_cast<double>(kNumParts * dtype_bytes(manifest.dtype));
  int64_t shard = 0;
  int64_t elements = 0;  // in all shards so far
  for (const SavedTensor& tensor : manifest.tensors) {
    const auto [rows, columns] = matrix_size(tensor.shape);
    for (int64_t row = 0; row < rows;) {
      const double end = total * static_cast<double>(shard + 1) / static_cast<double>(num_shards);
      const double room = (end - static_cast<double>(elements)) / static_cast<double>(columns);
      const bool last = shard + 1 == num_shards;
      const int64_t count =
          last ? rows - row : std::clamp<int64_t>(std::llround(room), 0, rows - row);
      if (count > 0)
        shards[static_cast<size_t>(shard)].blocks.push_back(
            {.tensor = tensor.name, .offset = {row, 0}, .size = {count, columns}});
      row += count;
      elements += count * columns;
      if (row < rows) ++shard;
    }
  }
  return shards;
}

/// The folder that is being written. Vanishes with this object unless it was published.
class WorkFolder {
 public:
  explicit WorkFolder(std::string target) : target_(std::move(target)) {
    check_usage(!entry_exists(target_), target_, " is there already; name a folder that is not");
    std::error_code error;
    const bool made = std::filesystem::create_directory(path_, error);
    check_usage(!error, "cannot make the folder ", path_, ": ", error.message());
    check_usage(made, path_,
                " is there: another reshard writes it, or one was broken off; remove "
                "it if nobody does");
  }
  ~WorkFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;

  const std::string& path() const { return path_; }
  void publish() {
    std::error_code error;
    std::filesystem::rename(path_, target_, error);
    check(!error, "cannot rename ", path_, " to ", target_, ": ", error.message());
    sync_folder(folder_of(target_));
  }

 private:
  std::string target_;
  std::string path_ = target_ + ".resharding";
};

class Resharder {
 public:
  Resharder(CheckpointReader& reader, const std::string& folder, const ByteProgress& progress)
      : reader_(reader), folder_(folder), progress_(progress) {}

  void write(SavedShard& shard) {
    const DType dtype = reader_.manifest().dtype;
    const std::string path = folder_ + "/" + shard.file;
    shard.bytes = lay_out_shard(path, shard.blocks, dtype, reader_.manifest().tensors);
    PositionalFile file(path, PositionalFile::Access::write);
    for (SavedBlock& block : shard.blocks)
      for (int part = 0; part < kNumParts; ++part) write_part(file, block, part);
    shard.frame_digest = frame_digest(file, shard, dtype);
    file.sync();
  }

 private:
  void write_part(PositionalFile& file, SavedBlock& block, int part) {
    const DType dtype = reader_.manifest().dtype;
    const SavedTensor& tensor = *reader_.manifest().find(block.tensor);
    const auto index = static_cast<size_t>(part);
    int64_t place = block.place[index];
    for (const BlockRange& range : cut_range({block.offset, block.size}, dtype, kPieceBytes)) {
      buffer_.resize(static_cast<size_t>(range.size[0] * range.size[1] * dtype_bytes(dtype)));
      const Tensor piece = matrix_over(buffer_.data(), range, dtype);
      reader_.read(tensor, part, range, piece.data);
      block.digest[index] += tensor_digest(piece, range.offset, block.size[1]);
      file.write(place, piece.data, piece.bytes());  // pieces follow each other in the block
      place += piece.bytes();
      done_ += piece.bytes();
      if (progress_) progress_(done_, reader_.manifest().data_bytes());
    }
  }

  CheckpointReader& reader_;
  const std::string& folder_;
  const ByteProgress& progress_;
  std::vector<uint8_t> buffer_;
  int64_t done_ = 0;
};

std::string without_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

void check_reshard(const Manifest& manifest, const std::string& target, int64_t num_shards) {
  check_usage(1 <= num_shards && num_shards <= kMostShards, "--shards is ", num_shards,
              "; give a number from 1 to ", kMostShards);
  const std::string name = std::filesystem::path(target).filename().string();
  const auto meant = parse_save_name(name);
  check_usage(!meant || (meant->kind.empty() && meant->iteration == manifest.counters.step), target,
              " is the name of something else than a checkpoint of iteration ",
              manifest.counters.step, "; call it ", iteration_folder(manifest.counters.step));
}

}  // namespace

void reshard_checkpoint(const std::string& source, const std::string& target, int64_t num_shards,
                        const ByteProgress& progress) {
  CheckpointReader reader(source);
  const std::string folder = without_slash(target);
  check_reshard(reader.manifest(), folder, num_shards);
  WorkFolder work(folder);
  Manifest manifest = reader.manifest();
  manifest.shards = balanced_shards(manifest, num_shards);
  Resharder resharder(reader, work.path(), progress);
  for (SavedShard& shard : manifest.shards) resharder.write(shard);
  reader.check_what_was_read();
  const std::string certificate = source + "/next_step.json";
  if (file_exists(certificate)) write_file(work.path() + "/next_step.json", read_file(certificate));
  seal_checkpoint(work.path(), manifest);
  work.publish();
}

void export_weights(const std::string& source, const std::string& target,
                    const ByteProgress& progress) {
  constexpr int kWeights = 0;
  CheckpointReader reader(source);
  const Manifest& manifest = reader.manifest();
  check_usage(!entry_exists(target), target, " is there already; name a file that is not");
  Hdf5File file = Hdf5File::create(target);
  write_weights_info(file, {.config_ini = manifest.config_ini,
                            .step = manifest.counters.step,
                            .consumed_samples = manifest.counters.consumed_samples,
                            .tokenizer_hash = manifest.tokenizer_hash});
  std::vector<uint8_t> buffer;
  int64_t done = 0;
  for (const SavedTensor& tensor : manifest.tensors) {
    file.create_dataset(tensor.name, tensor.shape, manifest.dtype);
    const auto dims = static_cast<size_t>(tensor.shape.rank());
    for (const BlockRange& range : cut_range(whole_range(tensor), manifest.dtype, kPieceBytes)) {
      Tensor piece = matrix_over(nullptr, range, manifest.dtype);
      buffer.resize(static_cast<size_t>(piece.bytes()));
      piece.data = buffer.data();
      reader.read(tensor, kWeights, range, piece.data);
      if (dims == 1) piece.shape = Shape{range.size[0]};
      file.write_block(tensor.name, std::span(range.offset).first(dims), piece);
      done += piece.bytes();
      if (progress) progress(done, manifest.data_bytes() / kNumParts);
    }
  }
  reader.check_what_was_read();
  file.publish();
}

}  // namespace phalanx
