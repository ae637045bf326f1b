// Every rank reads the rectangles it needs; all of them together check the sums.
#include "core/checkpoint/checkpoint_loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <set>

#include "core/checkpoint/agreement.h"
#include "core/checkpoint/save_plan.h"
#include "core/checkpoint/shard_file.h"
#include "core/checkpoint/tensor_digest.h"
#include "core/checkpoint/verify.h"

namespace phalanx {
namespace {

// Of a device's tensors, in host memory at a time: enough for a disk's and a bus's full speed.
constexpr int64_t kPieceBytes = int64_t{8} << 20;

/// What `read` finds wrong, as text; "" if nothing.
template <class Read>
std::string damage_of(const Read& read) {
  try {
    read();
  } catch (const CheckpointDamage& damage) {
    return damage.what();
  } catch (const Error& error) {
    return kUnreadable + std::string(error.what());
  }
  return {};
}

/// "name" or "begin*".
bool is_named(const std::string& name, const std::vector<std::string>& patterns) {
  return std::ranges::any_of(patterns, [&](const std::string& pattern) {
    if (!pattern.ends_with('*')) return name == pattern;
    return name.starts_with(pattern.substr(0, pattern.size() - 1));
  });
}

/// One load from beginning to end.
class Loading {
 public:
  Loading(const std::string& folder, const Manifest& manifest, const LoadTarget& target,
          IoWatchdog& watchdog)
      : folder_(folder),
        manifest_(manifest),
        target_(target),
        watchdog_(watchdog),
        table_(pieces_of(target.optimizer.shards()), target.world) {
    for (const OptimizerShard& shard : target_.optimizer.shards())
      shards_of_[shard.parameter->spec.name].push_back(&shard);
  }

  void check_names(const LoadExceptions& exceptions, LoadReport& report) {
    std::string problems;
    std::set<std::string> expected;
    for (const PieceTable::Entry& entry : table_.entries()) {
      const Piece& piece = entry.piece;
      if (!expected.insert(piece.name).second) continue;
      const SavedTensor* saved = manifest_.find(piece.name);
      if (saved == nullptr) {
        if (is_named(piece.name, exceptions.missing))
          report.missing.push_back(piece.name);
        else
          problems += fmt::format("\n  missing: {} {} (--allow-missing-tensors {})", piece.name,
                                  piece.global_shape.to_string(), piece.name);
      } else if (!(saved->shape == piece.global_shape)) {
        problems += fmt::format("\n  {} is {}, expected {}", piece.name, saved->shape.to_string(),
                                piece.global_shape.to_string());
      }
    }
    for (const SavedTensor& tensor : manifest_.tensors) {
      if (expected.contains(tensor.name)) continue;
      if (is_named(tensor.name, exceptions.unexpected))
        report.unexpected.push_back(tensor.name);
      else
        problems += fmt::format("\n  unexpected: {} {} (--allow-unexpected-tensors {})",
                                tensor.name, tensor.shape.to_string(), tensor.name);
    }
    const DType dtype = accumulator_dtype(target_.store.dtype());
    if (manifest_.dtype != dtype)
      problems += fmt::format("\n  tensors are {}, expected {}; use the --precision of that run",
                              dtype_name(manifest_.dtype), dtype_name(dtype));
    check_usage(problems.empty(), folder_, " does not fit the model:", problems);
  }

  void read_shards(LoadReport& report) {
    for (const SavedShard& shard : manifest_.shards) {
      if (!needs(shard)) continue;
      const std::string path = folder_ + "/" + shard.file;
      const IoWatchdog::Watch watch(watchdog_, "reading", path);
      const PositionalFile file(path, PositionalFile::Access::read);
      for (const SavedBlock& block : shard.blocks) {
        const auto place = shards_of_.find(block.tensor);
        if (place == shards_of_.end()) continue;
        for (const OptimizerShard* own : place->second) read_block(file, block, *own);
      }
      report.bytes_read += file.bytes_read();
    }
  }

  /// The sums over all ranks of what was read, against the manifest's.
  void check_digests() {
    std::map<std::string_view, size_t> number;
    std::vector<uint64_t> expected(manifest_.tensors.size() * kNumParts);
    for (size_t i = 0; i < manifest_.tensors.size(); ++i) number[manifest_.tensors[i].name] = i;
    for (const SavedShard& shard : manifest_.shards)
      for (const SavedBlock& block : shard.blocks)
        for (size_t part = 0; part < kNumParts; ++part)
          expected[number.at(block.tensor) * kNumParts + part] += block.digest[part];

    std::vector<uint64_t> found(expected.size());
    for (const PlannedBlock& planned : plan_save(table_)) {
      const Piece& piece = table_.entries()[static_cast<size_t>(planned.entry)].piece;
      const auto place = number.find(piece.name);
      if (planned.rank == target_.world.rank() && place != number.end())
        add_digests(planned, piece, &found[place->second * kNumParts]);
    }
    sum_digests(target_.world, found);
    std::set<std::string> wrong;
    for (size_t i = 0; i < found.size(); ++i) {
      const std::string& name = manifest_.tensors[i / kNumParts].name;
      if (found[i] != expected[i] && in_model(name)) wrong.insert(name);
    }
    if (!wrong.empty()) name_damage(wrong);
  }

 private:
  bool needs(const SavedShard& shard) const {
    return std::ranges::any_of(
        shard.blocks, [&](const SavedBlock& block) { return shards_of_.contains(block.tensor); });
  }

  bool in_model(const std::string& name) const {
    const auto& entries = table_.entries();
    const auto place = std::ranges::lower_bound(
        entries, name, {},
        [](const auto& entry) -> const std::string& { return entry.piece.name; });
    return place != entries.end() && place->piece.name == name;
  }

  /// The part of `block` that lies in `own`, into all three of its tensors.
  void read_block(const PositionalFile& file, const SavedBlock& block, const OptimizerShard& own) {
    const Piece piece = piece_of(own);
    const BlockRange range = overlap_of({block.offset, block.size}, {piece.offset, piece.size});
    if (range.size[0] == 0 || range.size[1] == 0) return;
    const std::array<Tensor, kNumParts> parts = parts_of(own);
    for (int part = 0; part < kNumParts; ++part) {
      const Tensor& whole = parts[static_cast<size_t>(part)];
      const int64_t row = range.offset[0] - piece.offset[0];
      const int64_t column = range.offset[1] - piece.offset[1];
      read_range(file, {block, part, manifest_.dtype}, range, whole.slice(row, row + range.size[0]),
                 column);
    }
  }

  /// Into columns from `column` on of `rows`: straight into host memory, or in pieces by way of it.
  void read_range(const PositionalFile& file, const BlockPart& from, const BlockRange& range,
                  const Tensor& rows, int64_t column) {
    if (rows.device == Device::cpu) {
      auto* target = static_cast<uint8_t*>(rows.data) + column * dtype_bytes(rows.dtype);
      read_block_range(file, from, range, target, rows.shape[1]);
      return;
    }
    const int64_t columns = range.size[1];
    const int64_t step = rows_of_piece(columns * dtype_bytes(rows.dtype));
    for (int64_t row = 0; row < range.size[0]; row += step) {
      const int64_t count = std::min(step, range.size[0] - row);
      const Tensor host = host_piece({count, columns}, rows.dtype);
      read_block_range(
          file, from,
          {.offset = {range.offset[0] + row, range.offset[1]}, .size = {count, columns}}, host.data,
          columns);
      target_.backend.upload_columns(rows.slice(row, row + count), column, columns, host.data);
    }
  }

  static int64_t rows_of_piece(int64_t row_bytes) {
    return std::max<int64_t>(1, kPieceBytes / row_bytes);
  }

  Tensor host_piece(const Shape& shape, DType dtype) {
    const int64_t bytes = shape.numel() * dtype_bytes(dtype);
    host_.resize(static_cast<size_t>(std::max<int64_t>(bytes, std::ssize(host_))));
    return {host_.data(), shape, dtype, Device::cpu};
  }

  /// The checksum of `rows`, which lie at `offset` of a tensor of `columns`, wherever they are.
  uint64_t digest_of(const Tensor& rows, std::array<int64_t, 2> offset, int64_t columns) {
    if (rows.device == Device::cpu) return tensor_digest(rows, offset, columns);
    const int64_t step = rows_of_piece(rows.shape[1] * dtype_bytes(rows.dtype));
    uint64_t sum = 0;
    for (int64_t row = 0; row < rows.shape[0]; row += step) {
      const Tensor piece = rows.slice(row, std::min(row + step, rows.shape[0]));
      const Tensor host = host_piece(piece.shape, piece.dtype);
      target_.backend.download(host.data, piece);
      sum += tensor_digest(host, {offset[0] + row, offset[1]}, columns);
    }
    return sum;
  }

  void add_digests(const PlannedBlock& planned, const Piece& piece, uint64_t* sums) {
    const int64_t columns = matrix_size(piece.global_shape)[1];
    for (const OptimizerShard* own : shards_of_.at(piece.name)) {
      const int64_t first = own->parameter->offset[0] + own->row_begin;
      if (planned.row_begin < first || planned.row_end > own->parameter->offset[0] + own->row_end)
        continue;
      const std::array<Tensor, kNumParts> parts = parts_of(*own);
      for (size_t part = 0; part < kNumParts; ++part)
        sums[part] +=
            digest_of(parts[part].slice(planned.row_begin - first, planned.row_end - first),
                      {planned.row_begin, piece.offset[1]}, columns);
    }
  }

  /// Rank 0 reads the blocks of these tensors once more, to tell which file is wrong.
  [[noreturn]] void name_damage(const std::set<std::string>& tensors) {
    std::string text;
    if (target_.world.rank() == 0) {
      const VerifyReport report = verify_checkpoint(folder_, {.only = &tensors});
      for (const std::string& damage : report.damages)
        text += (text.empty() ? "" : "\n  ") + damage;
      if (text.empty())
        text = fmt::format(
            "{}: {} was read wrong, though reading it again finds no damage; memory "
            "or disk may be failing",
            folder_, *tensors.begin());
    }
    throw CheckpointDamage(broadcast_text(target_.world, text));
  }

  const std::string& folder_;
  const Manifest& manifest_;
  LoadTarget target_;
  IoWatchdog& watchdog_;
  PieceTable table_;
  std::map<std::string, std::vector<const OptimizerShard*>, std::less<>> shards_of_;
  std::vector<uint8_t> host_;  // one piece on its way to or from a device
};

}  // namespace

Manifest share_manifest(const std::string& folder, ProcessGroup& world, IoWatchdog& watchdog) {
  const std::string path = folder + "/manifest.json";
  std::optional<Manifest> own;  // rank 0 need not parse it again
  std::string text;
  agree_intact(world, damage_of([&] {
                 if (world.rank() != 0) return;
                 const IoWatchdog::Watch watch(watchdog, "reading", path);
                 own = read_checkpoint_manifest(folder);
                 text = read_file(path);
               }));
  text = broadcast_text(world, text);
  return own ? std::move(*own) : parse_manifest(text, path);
}

Manifest open_checkpoint(const std::string& folder, ProcessGroup& world, IoWatchdog& watchdog) {
  Manifest manifest = share_manifest(folder, world, watchdog);
  agree_intact(world, damage_of([&] {
                 if (world.rank() == 0) verify_index(folder, manifest);
                 const auto num_shards = std::ssize(manifest.shards);
                 for (int64_t i = world.rank(); i < num_shards; i += world.size()) {
                   const SavedShard& shard = manifest.shards[static_cast<size_t>(i)];
                   const IoWatchdog::Watch watch(watchdog, "reading", folder + "/" + shard.file);
                   open_shard(folder, shard, manifest.dtype);
                 }
               }));
  return manifest;
}

void check_model(const std::string& folder, const Manifest& manifest, const LoadTarget& target,
                 const LoadExceptions& exceptions, IoWatchdog& watchdog) {
  LoadReport report;
  Loading(folder, manifest, target, watchdog).check_names(exceptions, report);
}

LoadReport load_checkpoint(const std::string& folder, const Manifest& manifest,
                           const LoadTarget& target, const LoadExceptions& exceptions,
                           IoWatchdog& watchdog) {
  const auto begin = std::chrono::steady_clock::now();
  LoadReport report;
  Loading loading(folder, manifest, target, watchdog);
  loading.check_names(exceptions, report);
  agree_intact(target.world, damage_of([&] { loading.read_shards(report); }));
  loading.check_digests();
  target.optimizer.copy_parameters_from_masters();
  target.optimizer.set_num_steps(manifest.num_updates);
  target.gradients.gather_weights();
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return report;
}

}  // namespace phalanx
