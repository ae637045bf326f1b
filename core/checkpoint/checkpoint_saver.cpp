// Snapshot on the training thread, shards and commit on a thread of their own, agreement between
// ranks at step boundaries.
#include "core/checkpoint/checkpoint_saver.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "core/checkpoint/agreement.h"
#include "core/checkpoint/fault_hook.h"
#include "core/checkpoint/save_names.h"
#include "core/checkpoint/seal.h"
#include "core/checkpoint/shard_file.h"
#include "core/checkpoint/tensor_digest.h"
#include "kernels/base/log.h"

namespace phalanx {
namespace {

// Blocks are summed and written piece by piece, so that a piece is still in the cache when it is
// written.
constexpr int64_t kPieceBytes = int64_t{1} << 20;
// Of the index, the manifest and the files' own descriptions, beside the tensors.
constexpr int64_t kSpareBytes = int64_t{16} << 20;
// Tells a rank's failure from its list of blocks.
constexpr char kFailed[] = "failed: ";

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

CheckpointSaver::CheckpointSaver(const SaveSource& source, SaveOptions options, SaveFolder* folder)
    : source_(source),
      options_(std::move(options)),
      folder_(folder),
      watchdog_(fmt::format("rank {}", source.world.rank()), options_.report_after,
                [](const std::string& text) { log_info("{}", text); }) {
  check((folder_ != nullptr) == (source_.world.rank() == 0),
        "the folder of checkpoints belongs to rank 0 alone");
  plan_blocks();
}

CheckpointSaver::~CheckpointSaver() {
  if (!work_.valid()) return;
  try {
    work_.get();
  } catch (const std::exception& error) {
    log_info("a checkpoint that nobody waited for was not written: {}", error.what());
  }
}

void CheckpointSaver::plan_blocks() {
  const std::vector<Piece> pieces = pieces_of(source_.shards);
  const PieceTable table(pieces, source_.world);
  std::map<int64_t, size_t> shard_of_entry;
  for (size_t i = 0; i < pieces.size(); ++i) shard_of_entry[table.find(pieces[i])] = i;
  const DType dtype = accumulator_dtype(source_.store.dtype());
  std::vector<SavedTensor> tensors;
  int64_t bytes = 0;
  for (const PlannedBlock& planned : plan_save(table)) {
    const Piece& piece = table.entries()[static_cast<size_t>(planned.entry)].piece;
    if (tensors.empty() || tensors.back().name != piece.name)
      tensors.push_back({piece.name, piece.global_shape});
    if (planned.rank != source_.world.rank()) continue;
    blocks_.push_back({.tensor = piece.name,
                       .offset = {planned.row_begin, piece.offset[1]},
                       .size = {planned.row_end - planned.row_begin, piece.size[1]}});
    shard_of_block_.push_back(shard_of_entry.at(planned.entry));
    bytes += blocks_.back().numel() * kNumParts * dtype_bytes(dtype);
  }
  snapshot_.resize(static_cast<size_t>(bytes));
  manifest_ = {.config_ini = options_.config_ini,
               .tokenizer_hash = options_.tokenizer_hash,
               .code_version = options_.code_version,
               .layout = options_.layout,
               .world_size = source_.world.size(),
               .order_samples = options_.order_samples,
               .dtype = dtype,
               .tensors = std::move(tensors)};
}

std::string CheckpointSaver::start(const TrainCounters& counters, int64_t num_updates) {
  check(phase_ == Phase::idle, "a checkpoint is still being written");
  began_ = Clock::now();
  manifest_.counters = counters;
  manifest_.num_updates = num_updates;
  outcome_ = {.iteration = counters.step, .bytes = manifest_.data_bytes()};
  constexpr char kFolder = '+';
  constexpr char kProblem = '-';
  std::string answer;
  if (folder_ != nullptr) {
    try {
      const std::string& save = folder_->path();
      const int64_t free = entry_exists(save) ? free_bytes(save) : INT64_MAX;
      const int64_t needed = manifest_.data_bytes() + kSpareBytes;
      check_usage(free >= needed, save, " has ", free, " bytes free, a checkpoint needs ", needed,
                  "; delete something there, or lower --save-keep-last");
      manifest_.epoch = folder_->epoch();
      answer = kFolder + folder_->begin(counters.step);
    } catch (const FencedError&) {
      throw;
    } catch (const std::exception& error) {
      answer = kProblem + std::string(error.what());
    }
  }
  answer = broadcast_text(source_.world, answer);
  if (answer.front() == kProblem) return answer.substr(1);
  writing_ = answer.substr(1);
  take_snapshot();
  phase_ = Phase::shards;
  work_ = std::async(std::launch::async, [this] {
    const auto begin = Clock::now();
    if (!blocks_.empty()) shard_ = write_shard(writing_);
    shard_seconds_ = seconds_since(begin);
  });
  outcome_.stall_seconds = seconds_since(began_);
  outcome_.snapshot_seconds = outcome_.stall_seconds;
  return {};
}

void CheckpointSaver::take_snapshot() {
  const FlightRange taking(flight_entry(FlightKind::phase, "take a snapshot"));
  fault_moment("snapshot", source_.world.rank());
  uint8_t* to = snapshot_.data();
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const OptimizerShard& shard = source_.shards[shard_of_block_[i]];
    const int64_t begin = blocks_[i].offset[0] - shard.parameter->offset[0] - shard.row_begin;
    for (const Tensor& part : parts_of(shard)) {
      const Tensor rows = part.slice(begin, begin + blocks_[i].size[0]);
      source_.backend.download(to, rows);
      to += rows.bytes();
    }
  }
}

/// On the thread of the save.
SavedShard CheckpointSaver::write_shard(const std::string& folder) {
  const int rank = source_.world.rank();
  const DType dtype = manifest_.dtype;
  SavedShard shard{.file = shard_name(rank), .bytes = 0, .frame_digest = 0, .blocks = blocks_};
  const std::string path = folder + "/" + shard.file;
  const IoWatchdog::Watch watch(watchdog_, "writing", path);
  shard.bytes = lay_out_shard(path, shard.blocks, dtype, manifest_.tensors);
  PositionalFile file(path, PositionalFile::Access::write);
  uint8_t* from = snapshot_.data();
  for (SavedBlock& block : shard.blocks) {
    fault_moment("shard", rank);
    const int64_t row_bytes = block.size[1] * dtype_bytes(dtype);
    const int64_t step = std::max<int64_t>(1, kPieceBytes / row_bytes);
    const int64_t columns = matrix_size(manifest_.find(block.tensor)->shape)[1];
    for (size_t part = 0; part < kNumParts; ++part)
      for (int64_t row = 0; row < block.size[0]; row += step) {
        const int64_t rows = std::min(step, block.size[0] - row);
        const Tensor piece{from, {rows, block.size[1]}, dtype, Device::cpu};
        block.digest[part] +=
            tensor_digest(piece, {block.offset[0] + row, block.offset[1]}, columns);
        file.write(block.place[part] + row * row_bytes, from, piece.bytes());
        from += piece.bytes();
      }
  }
  shard.frame_digest = frame_digest(file, shard, dtype);
  file.sync();
  sync_folder(folder);
  return shard;
}

std::optional<SaveOutcome> CheckpointSaver::poll() {
  if (phase_ == Phase::idle) return std::nullopt;
  const bool busy =
      work_.valid() && work_.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
  if (source_.world.all_reduce(int64_t{busy ? 1 : 0}, ReduceOp::max) != 0) return std::nullopt;

  std::string said;
  try {
    if (work_.valid()) work_.get();
    if (phase_ == Phase::shards) said = blocks_.empty() ? "" : shard_json(shard_);
  } catch (const FencedError&) {
    throw;
  } catch (const std::exception& error) {
    said = kFailed + std::string(error.what());
  }
  const std::vector<std::string> all = gather_texts(source_.world, said);
  for (size_t rank = 0; rank < all.size(); ++rank)
    if (all[rank].starts_with(kFailed)) {
      // A later start removes the folder under this one's hands: then that is what happened.
      if (folder_ != nullptr) folder_->check_current();
      return outcome(fmt::format("rank {}: {}", rank, all[rank].substr(sizeof kFailed - 1)));
    }
  if (phase_ == Phase::commit) return outcome("");

  manifest_.shards.clear();
  for (const std::string& text : all)
    if (folder_ != nullptr && !text.empty()) manifest_.shards.push_back(parse_shard(text));
  begin_commit();
  return std::nullopt;
}

void CheckpointSaver::begin_commit() {
  const double slowest = source_.world.all_reduce(shard_seconds_, ReduceOp::max);
  const int64_t rank = source_.world.all_reduce(
      int64_t{shard_seconds_ == slowest ? source_.world.rank() : 0}, ReduceOp::max);
  const int64_t bytes = source_.world.rank() == rank ? shard_.bytes : 0;
  outcome_.slowest_rank = static_cast<int>(rank);
  outcome_.slowest_seconds = slowest;
  outcome_.slowest_bytes = source_.world.all_reduce(bytes, ReduceOp::max);
  phase_ = Phase::commit;
  if (folder_ != nullptr) work_ = std::async(std::launch::async, [this] { commit(); });
}

/// On the thread of the save, of rank 0.
void CheckpointSaver::commit() {
  {
    const IoWatchdog::Watch watch(watchdog_, "completing", writing_);
    seal_checkpoint(writing_, manifest_);
    folder_->commit(manifest_.counters.step);
  }
  outcome_.durable_seconds = seconds_since(began_);
  const IoWatchdog::Watch watch(watchdog_, "deleting old checkpoints in", folder_->path());
  outcome_.retired = folder_->retire(options_.retention);
}

SaveOutcome CheckpointSaver::outcome(const std::string& problem) {
  phase_ = Phase::idle;
  outcome_.problem = problem;
  if (folder_ != nullptr && !problem.empty()) folder_->abandon(outcome_.iteration);
  outcome_.snapshot_seconds = source_.world.all_reduce(outcome_.snapshot_seconds, ReduceOp::max);
  outcome_.stall_seconds = source_.world.all_reduce(outcome_.stall_seconds, ReduceOp::max);
  outcome_.durable_seconds = source_.world.all_reduce(outcome_.durable_seconds, ReduceOp::max);
  return outcome_;
}

std::optional<SaveOutcome> CheckpointSaver::finish() {
  const FlightRange waiting(flight_entry(FlightKind::phase, "wait for the save"));
  const auto begin = Clock::now();
  std::optional<SaveOutcome> result;
  while (in_flight()) {
    if (work_.valid()) work_.wait();
    result = poll();
  }
  if (result)
    result->stall_seconds =
        source_.world.all_reduce(result->stall_seconds + seconds_since(begin), ReduceOp::max);
  return result;
}

}  // namespace phalanx
