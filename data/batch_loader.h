// Batches in a fixed order, made ahead of time by a thread.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "data/data_config.h"
#include "data/micro_batch.h"
#include "data/sample_source.h"

namespace phalanx {

/// Sizes of batches and this rank's part in them. A shard is a data-parallel rank.
struct BatchPlan {
  int64_t seq_length = 0;
  int64_t micro_batch_size = 1;
  int64_t global_batch_size = 1;
  int64_t shard = 0;
  int64_t num_shards = 1;
  int64_t num_samples = 0;   // in the whole run, over all shards
  int64_t first_sample = 0;  // consumed before, over all shards
  uint64_t seed = 1234;      // of the data order, below 2^32
};

/// Throws UsageError with the nearest sizes that work.
void check_batch_plan(const BatchPlan& plan);

/// What a batch carries beside tokens, and what its tokens may be.
struct BatchOptions {
  Vocabulary vocabulary = {};
  bool eod_mask_loss = false;
  bool reset_position_ids = false;
  bool reset_attention_mask = false;
};

/// This shard's global batches, in order. Which samples a global batch holds is a pure function of
/// the consumed samples: [n, n + global_batch_size), whatever the number of shards; micro-batch m
/// of shard r holds samples n + (m * num_shards + r) * micro_batch_size and following. All methods
/// are for one thread; a second one fills the next batch meanwhile.
class BatchLoader {
 public:
  BatchLoader(std::unique_ptr<SampleSource> source, const BatchPlan& plan,
              const BatchOptions& options);
  ~BatchLoader();
  BatchLoader(const BatchLoader&) = delete;
  BatchLoader& operator=(const BatchLoader&) = delete;

  /// The next batch, valid until the next call. Throws what went wrong while making it, and Error
  /// when all samples are consumed. No allocation.
  const GlobalBatch& next();
  /// Goes on at `first_sample` (0 to start again).
  void seek(int64_t first_sample);
  /// Samples handed out so far, over all shards, counting those before `first_sample`.
  int64_t consumed_samples() const { return consumed_; }

 private:
  void start();
  void stop();
  void run();
  void fill(GlobalBatch& batch, int64_t first_sample);
  void fill_sequence(MicroBatch& micro_batch, int64_t column, int64_t sample);

  std::unique_ptr<SampleSource> source_;
  BatchPlan plan_;
  BatchOptions options_;
  std::vector<int32_t> sample_tokens_;  // [S + 1], of the thread
  int64_t consumed_ = 0;

  // Two batches: while the caller has one, the thread fills the other.
  std::array<GlobalBatch, 2> batches_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t num_made_ = 0;      // batches made since `start`; guarded by mutex_, as all below
  int64_t num_returned_ = 0;  // batches the caller is done with
  int64_t num_taken_ = 0;
  bool stopping_ = false;
  std::exception_ptr error_;
  std::thread thread_;
};

/// The loader of one split as options describe it.
std::unique_ptr<BatchLoader> make_batch_loader(const DataConfig& config, DataSplit split,
                                               const BatchPlan& plan, const Vocabulary& vocabulary);

}  // namespace phalanx
