// Verification: frames of all shards first, then the blocks, both in parallel over the files.
#include "core/checkpoint/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/checkpoint/checked_json.h"
#include "core/checkpoint/checkpoint_reader.h"
#include "core/checkpoint/parallel_tasks.h"
#include "core/checkpoint/save_names.h"
#include "core/checkpoint/seal.h"
#include "core/checkpoint/tensor_digest.h"
#include "data/file_io.h"

namespace phalanx {
namespace {

// What a thread takes at once: large, so that files are opened seldom; a block may be many.
constexpr int64_t kTaskBytes = int64_t{64} << 20;

/// Reads the manifest, noting what is wrong. A damaged COMMITTED alone does not hide the rest.
std::optional<Manifest> read_noting_damage(const std::string& folder, VerifyReport& report) {
  try {
    return read_checkpoint_manifest(folder);
  } catch (const Error& error) {
    report.damages.emplace_back(error.what());
  }
  const std::string path = folder + "/manifest.json";
  if (!file_exists(path)) return {};
  try {
    return parse_manifest(read_file(path), path);
  } catch (const Error& error) {
    if (error.what() != report.damages.back()) report.damages.emplace_back(error.what());
    return {};
  }
}

class Verifier {
 public:
  Verifier(const std::string& folder, const Manifest& manifest, const VerifyOptions& options)
      : folder_(folder), manifest_(manifest), options_(options), shards_(manifest.shards.size()) {}

  void run(VerifyReport& report) {
    for_each_task(std::ssize(shards_), options_.threads,
                  [&](int64_t i) { check_frame(static_cast<size_t>(i)); });
    plan_blocks();
    for_each_task(std::ssize(tasks_), options_.threads,
                  [&](int64_t i) { check_range(tasks_[static_cast<size_t>(i)]); });
    gather(report);
  }

 private:
  struct BlockState {
    bool read = false;  // it is wanted and the file reaches to its end
    std::array<uint64_t, kNumParts> digest{};
    std::array<std::string, kNumParts> error{};
  };
  struct ShardState {
    int64_t bytes = 0;  // of the file as it is
    std::vector<std::string> damages;
    std::vector<BlockState> blocks;
  };
  struct Task {
    size_t shard = 0;
    size_t block = 0;
    int part = 0;
    BlockRange range;
  };

  bool wanted(const SavedBlock& block) const {
    return options_.only == nullptr || options_.only->contains(block.tensor);
  }

  void check_frame(size_t number) {
    const SavedShard& shard = manifest_.shards[number];
    ShardState& state = shards_[number];
    state.blocks.resize(shard.blocks.size());
    if (std::ranges::none_of(shard.blocks, [&](const auto& block) { return wanted(block); }) &&
        options_.only != nullptr)
      return;
    try {
      state.bytes = open_shard(folder_, shard, manifest_.dtype).bytes();
    } catch (const Error& error) {
      state.damages.emplace_back(error.what());
      const std::string path = folder_ + "/" + shard.file;
      if (file_exists(path)) state.bytes = file_bytes(path);
    }
    find_lost_blocks(shard, state);
  }

  void find_lost_blocks(const SavedShard& shard, ShardState& state) const {
    const SavedBlock* lost = nullptr;
    int64_t num_lost = 0;
    for (size_t i = 0; i < shard.blocks.size(); ++i) {
      const SavedBlock& block = shard.blocks[i];
      const int64_t end =
          *std::ranges::max_element(block.place) + block.numel() * dtype_bytes(manifest_.dtype);
      state.blocks[i].read = wanted(block) && end <= state.bytes;
      if (end <= state.bytes || !wanted(block)) continue;
      if (lost == nullptr) lost = &block;
      ++num_lost;
    }
    if (lost != nullptr)
      state.damages.push_back(fmt::format("{}/{}: {} of {} blocks are lost, the first of {}",
                                          folder_, shard.file, num_lost, shard.blocks.size(),
                                          lost->tensor));
  }

  void plan_blocks() {
    for (size_t s = 0; s < shards_.size(); ++s)
      for (size_t b = 0; b < shards_[s].blocks.size(); ++b) {
        if (!shards_[s].blocks[b].read) continue;
        const SavedBlock& block = manifest_.shards[s].blocks[b];
        const auto ranges = cut_range({block.offset, block.size}, manifest_.dtype, kTaskBytes);
        for (int part = 0; part < kNumParts; ++part)
          for (const BlockRange& range : ranges) tasks_.push_back({s, b, part, range});
        total_ += kNumParts * block.numel() * dtype_bytes(manifest_.dtype);
      }
  }

  void check_range(const Task& task) {
    const SavedShard& shard = manifest_.shards[task.shard];
    const SavedBlock& block = shard.blocks[task.block];
    const int64_t columns = matrix_size(manifest_.find(block.tensor)->shape)[1];
    std::vector<uint8_t> buffer;
    uint64_t digest = 0;
    std::string error;
    try {
      const PositionalFile file(folder_ + "/" + shard.file, PositionalFile::Access::read);
      for (const BlockRange& piece : cut_range(task.range, manifest_.dtype, kPieceBytes)) {
        buffer.resize(
            static_cast<size_t>(piece.size[0] * piece.size[1] * dtype_bytes(manifest_.dtype)));
        read_block_range(file, {block, task.part, manifest_.dtype}, piece, buffer.data(),
                         piece.size[1]);
        digest += tensor_digest(matrix_over(buffer.data(), piece, manifest_.dtype), piece.offset,
                                columns);
      }
    } catch (const Error& problem) {
      error =
          fmt::format("{}/{}: {}{}: {}", folder_, shard.file,
                      kPartPrefix[static_cast<size_t>(task.part)], block.tensor, problem.what());
    }
    finish(task, digest, error);
  }

  void finish(const Task& task, uint64_t digest, const std::string& error) {
    const std::scoped_lock lock(mutex_);
    BlockState& state = shards_[task.shard].blocks[task.block];
    const auto part = static_cast<size_t>(task.part);
    state.digest[part] += digest;
    if (!error.empty()) state.error[part] = error;
    done_ += task.range.size[0] * task.range.size[1] * dtype_bytes(manifest_.dtype);
    if (options_.progress) options_.progress(done_, total_);
  }

  void gather(VerifyReport& report) const {
    report.bytes = done_;
    for (size_t s = 0; s < shards_.size(); ++s) {
      const SavedShard& shard = manifest_.shards[s];
      const ShardState& state = shards_[s];
      report.damages.insert(report.damages.end(), state.damages.begin(), state.damages.end());
      for (size_t b = 0; b < state.blocks.size(); ++b) {
        if (!state.blocks[b].read) continue;
        for (size_t part = 0; part < kNumParts; ++part)
          if (!state.blocks[b].error[part].empty())
            report.damages.push_back(state.blocks[b].error[part]);
          else if (state.blocks[b].digest[part] != shard.blocks[b].digest[part])
            report.damages.push_back(digest_damage(folder_ + "/" + shard.file, shard.blocks[b],
                                                   static_cast<int>(part),
                                                   state.blocks[b].digest[part]));
      }
    }
  }

  const std::string& folder_;
  const Manifest& manifest_;
  const VerifyOptions& options_;
  std::vector<ShardState> shards_;
  std::vector<Task> tasks_;
  std::mutex mutex_;
  int64_t done_ = 0;
  int64_t total_ = 0;
};

/// The certificate of the next step, which is written later than the rest and may not be there.
void check_certificate_file(const std::string& folder, int64_t step, VerifyReport& report) {
  const std::string path = folder + "/next_step.json";
  if (!entry_exists(path)) return;
  if (!file_exists(path) || !has_its_checksum(read_file(path))) {
    report.damages.push_back(path + ": the resume certificate is not what was written");
    return;
  }
  const nlohmann::json json = nlohmann::json::parse(read_file(path), nullptr, false);
  const int64_t found = json.is_object() ? json.value("iteration", int64_t{-1}) : -1;
  if (found != step + 1)
    report.damages.push_back(
        fmt::format("{}: it is of step {}, expected {}", path, found, step + 1));
}

void note_strangers(const std::string& folder, const Manifest& manifest, VerifyReport& report) {
  std::set<std::string> known{"manifest.json", "COMMITTED", "index.h5", "next_step.json"};
  for (const SavedShard& shard : manifest.shards) known.insert(shard.file);
  std::vector<std::string> names = names_in(folder);
  std::ranges::sort(names);
  for (const std::string& name : names)
    if (!known.contains(name))
      report.notes.push_back(fmt::format("{}/{} does not belong to the checkpoint", folder, name));
}

}  // namespace

void verify_index(const std::string& folder, const Manifest& manifest) {
  const std::string path = folder + "/index.h5";
  check_intact(file_exists(path), path, " is missing; expected a file of ", manifest.index_bytes,
               " bytes");
  check_intact(file_bytes(path) == manifest.index_bytes, path, ": expected ", manifest.index_bytes,
               " bytes, found ", file_bytes(path));
  const uint64_t found = file_digest(path);
  check_intact(
      found == manifest.index_digest, path,
      fmt::format(": checksum is {:016x}, expected {:016x}", found, manifest.index_digest));
}

VerifyReport verify_checkpoint(const std::string& folder, const VerifyOptions& options) {
  VerifyReport report;
  const auto manifest = read_noting_damage(folder, report);
  if (!manifest) return report;
  if (options.only == nullptr) {
    try {
      verify_index(folder, *manifest);
    } catch (const Error& error) {
      report.damages.emplace_back(error.what());
    }
    check_certificate_file(folder, manifest->counters.step, report);
    note_strangers(folder, *manifest, report);
  }
  Verifier(folder, *manifest, options).run(report);
  return report;
}

}  // namespace phalanx
