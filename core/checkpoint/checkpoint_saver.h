// CheckpointSaver: takes a copy of the training state and makes a checkpoint of it while training
// goes on.
#pragma once

#include <chrono>
#include <exception>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/checkpoint/io_watchdog.h"
#include "core/checkpoint/manifest.h"
#include "core/checkpoint/save_folder.h"
#include "core/checkpoint/save_plan.h"
#include "parallel/distributed_optimizer.h"

namespace phalanx {

/// Where a rank's share of the state is. Borrowed.
struct SaveSource {
  const ParameterStore& store;                // says the dtype
  const std::vector<OptimizerShard>& shards;  // of all ranks together: every element
  Backend& backend;
  ProcessGroup& world;
};

struct SaveOptions {
  std::string config_ini;
  std::string tokenizer_hash;
  std::string code_version;
  std::string layout;
  int64_t order_samples = 0;
  Retention retention;
  std::chrono::milliseconds report_after{0};  // a file that takes longer is named; 0: never
};

/// What became of a save; the same on every rank, but for `retired`.
struct SaveOutcome {
  int64_t iteration = 0;
  std::string problem;           // empty: the checkpoint is durable
  double snapshot_seconds = 0;   // that copying the state took, of the slowest rank
  double stall_seconds = 0;      // that training stood still for it, of the slowest rank
  double durable_seconds = 0;    // from its start until it was on disk under its name
  int64_t bytes = 0;             // of all tensors
  int slowest_rank = 0;          // of those that write
  double slowest_seconds = 0;    // it took to write and sync its shard
  int64_t slowest_bytes = 0;     // of that shard
  std::vector<int64_t> retired;  // iterations deleted since; on rank 0
};

/// One per rank; methods are collective over the world and for one thread. Holds host memory for
/// this rank's share of the state for as long as it lives. A thread per save writes; no collective
/// runs outside of the methods.
class CheckpointSaver {
 public:
  /// `folder` on rank 0, which must outlive this object; nullptr elsewhere.
  CheckpointSaver(const SaveSource& source, SaveOptions options, SaveFolder* folder);
  /// Waits for what is being written; it never becomes a checkpoint unless a `poll` has begun to
  /// commit it.
  ~CheckpointSaver();
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  /// Bytes of the copy: at most this rank's masters and moments.
  int64_t snapshot_bytes() const { return std::ssize(snapshot_); }
  /// Of saves from now on.
  void set_order_samples(int64_t samples) { manifest_.order_samples = samples; }
  /// No older checkpoint is deleted from now on. While none is in flight.
  void keep_all() { options_.retention = {}; }
  bool in_flight() const { return phase_ != Phase::idle; }

  /// Copies the state and starts to write it. None must be in flight. Returns why it could not be
  /// started (no space, no folder: the run can go on without), or "". Throws FencedError on rank 0
  /// if a later start owns the folder.
  std::string start(const TrainCounters& counters, int64_t num_updates);
  /// At every step boundary: what became of the save in flight, once that is known. Does not
  /// communicate while none is in flight.
  std::optional<SaveOutcome> poll();
  /// Waits for it.
  std::optional<SaveOutcome> finish();

 private:
  using Clock = std::chrono::steady_clock;
  enum class Phase : uint8_t { idle, shards, commit };

  void plan_blocks();
  void take_snapshot();
  SavedShard write_shard(const std::string& path);
  void begin_commit();
  void commit();
  SaveOutcome outcome(const std::string& problem);

  SaveSource source_;
  SaveOptions options_;
  SaveFolder* folder_;
  IoWatchdog watchdog_;
  std::vector<SavedBlock> blocks_;      // that this rank writes
  std::vector<size_t> shard_of_block_;  // places in source_.shards
  std::vector<uint8_t> snapshot_;       // block after block, part after part

  Phase phase_ = Phase::idle;
  Manifest manifest_;    // of the save in flight; its shards on rank 0 only, once known
  std::string writing_;  // its folder
  SavedShard shard_;     // what this rank wrote
  double shard_seconds_ = 0;
  SaveOutcome outcome_;
  Clock::time_point began_;
  std::future<void> work_;
};

}  // namespace phalanx
