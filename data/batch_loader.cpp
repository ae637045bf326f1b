// The batch loader: sampling, filling, and the hand-over between two threads.
#include "data/batch_loader.h"

#include <algorithm>
#include <string>

#include "kernels/base/error.h"
#include "kernels/base/flight_recorder.h"

namespace phalanx {
namespace {

MicroBatch empty_micro_batch(const BatchPlan& plan, const BatchOptions& options) {
  MicroBatch batch;
  batch.positions = plan.seq_length;
  batch.sequences = plan.micro_batch_size;
  const auto size = static_cast<size_t>(batch.positions * batch.sequences);
  batch.tokens.resize(size);
  batch.targets.resize(size);
  if (options.reset_position_ids) batch.position_ids.resize(size);
  if (options.reset_attention_mask) batch.document_start.resize(size);
  return batch;
}

}  // namespace

void check_batch_plan(const BatchPlan& plan) {
  check_usage(plan.seq_length >= 1, "seq-length ", plan.seq_length, " must be at least 1");
  check_usage(plan.micro_batch_size >= 1, "micro-batch-size ", plan.micro_batch_size,
              " must be at least 1");
  check(plan.num_shards >= 1 && plan.shard >= 0 && plan.shard < plan.num_shards, "shard ",
        plan.shard, " of ", plan.num_shards, " does not exist");
  const int64_t step = plan.micro_batch_size * plan.num_shards;
  const int64_t below = plan.global_batch_size / step * step;
  check_usage(plan.global_batch_size >= 1 && below == plan.global_batch_size, "global-batch-size ",
              plan.global_batch_size, " is not a multiple of micro-batch-size ",
              plan.micro_batch_size, " times ", plan.num_shards, " data-parallel ranks; try ",
              below > 0 ? std::to_string(below) + " or " : "", std::max<int64_t>(below, 0) + step);
  check(plan.first_sample >= 0, "consumed samples ", plan.first_sample, " cannot be negative");
}

BatchLoader::BatchLoader(std::unique_ptr<SampleSource> source, const BatchPlan& plan,
                         const BatchOptions& options)
    : source_(std::move(source)), plan_(plan), options_(options), consumed_(plan.first_sample) {
  check_batch_plan(plan_);
  check(plan_.num_samples <= source_->num_samples(), "a loader of ", plan_.num_samples,
        " samples over data of ", source_->num_samples());
  check_usage(plan_.num_samples >= plan_.global_batch_size, plan_.num_samples,
              " samples do not fill one global batch of ", plan_.global_batch_size,
              "; lower --global-batch-size or train longer");
  sample_tokens_.resize(static_cast<size_t>(plan_.seq_length + 1));
  const int64_t count = plan_.global_batch_size / (plan_.micro_batch_size * plan_.num_shards);
  for (GlobalBatch& batch : batches_) {
    batch.num_samples = plan_.global_batch_size;
    batch.micro_batches.assign(static_cast<size_t>(count), empty_micro_batch(plan_, options_));
  }
  start();
}

BatchLoader::~BatchLoader() {
  stop();
}

void BatchLoader::start() {
  num_made_ = num_returned_ = num_taken_ = 0;
  stopping_ = false;
  error_ = nullptr;
  thread_ = std::thread([this] { run(); });
}

void BatchLoader::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void BatchLoader::seek(int64_t first_sample) {
  check(first_sample >= 0, "consumed samples ", first_sample, " cannot be negative");
  stop();
  plan_.first_sample = consumed_ = first_sample;
  start();
}

/// The thread: fills batches_[k % 2] as soon as the caller is done with batch k - 2.
void BatchLoader::run() {
  try {
    int64_t first = plan_.first_sample;
    for (int64_t k = 0; first <= plan_.num_samples - plan_.global_batch_size; ++k) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stopping_ || k - num_returned_ < 2; });
        if (stopping_) return;
      }
      fill(batches_[static_cast<size_t>(k % 2)], first);
      first += plan_.global_batch_size;
      {
        const std::lock_guard lock(mutex_);
        num_made_ = k + 1;
      }
      changed_.notify_all();
    }
    fail("all ", plan_.num_samples, " samples are consumed (", first, " asked for, in batches of ",
         plan_.global_batch_size, ")");
  } catch (...) {
    const std::lock_guard lock(mutex_);
    error_ = std::current_exception();
  }
  changed_.notify_all();
}

const GlobalBatch& BatchLoader::next() {
  const FlightRange waiting(flight_entry(FlightKind::phase, "wait for a batch"));
  std::unique_lock lock(mutex_);
  num_returned_ = num_taken_;
  changed_.notify_all();
  changed_.wait(lock, [&] { return num_made_ > num_taken_ || error_ != nullptr; });
  if (num_made_ <= num_taken_) std::rethrow_exception(error_);
  const GlobalBatch& batch = batches_[static_cast<size_t>(num_taken_ % 2)];
  ++num_taken_;
  consumed_ += plan_.global_batch_size;
  return batch;
}

void BatchLoader::fill(GlobalBatch& batch, int64_t first_sample) {
  const FlightRange making(flight_entry(FlightKind::phase, "read a batch"));
  batch.first_sample = first_sample;
  for (size_t m = 0; m < batch.micro_batches.size(); ++m) {
    const int64_t group = static_cast<int64_t>(m) * plan_.num_shards + plan_.shard;
    for (int64_t b = 0; b < plan_.micro_batch_size; ++b)
      fill_sequence(batch.micro_batches[m], b, first_sample + group * plan_.micro_batch_size + b);
  }
}

void BatchLoader::fill_sequence(MicroBatch& batch, int64_t column, int64_t sample) {
  flight_progress();
  source_->read(sample, sample_tokens_);
  for (const int32_t id : sample_tokens_) {
    if (id >= 0 && id < options_.vocabulary.size) continue;
    fail(source_->describe(sample), " holds token id ", id, ", outside the vocabulary of ",
         options_.vocabulary.size, "; was the data made with this tokenizer?");
  }
  int32_t document_start = 0;
  for (int64_t s = 0; s < batch.positions; ++s) {
    const auto at = static_cast<size_t>(s * batch.sequences + column);
    const int32_t token = sample_tokens_[static_cast<size_t>(s)];
    const bool ends = token == options_.vocabulary.end_of_document;
    batch.tokens[at] = token;
    // The token that ends a document is the one whose successor cannot be foreseen.
    batch.targets[at] =
        ends && options_.eod_mask_loss ? kIgnoreTarget : sample_tokens_[static_cast<size_t>(s + 1)];
    if (options_.reset_position_ids)
      batch.position_ids[at] = static_cast<int32_t>(s) - document_start;
    if (options_.reset_attention_mask)
      batch.document_start[static_cast<size_t>(column * batch.positions + s)] = document_start;
    if (ends) document_start = static_cast<int32_t>(s) + 1;
  }
}

std::unique_ptr<BatchLoader> make_batch_loader(const DataConfig& config, DataSplit split,
                                               const BatchPlan& plan,
                                               const Vocabulary& vocabulary) {
  check_batch_plan(plan);
  check(plan.seq_length == config.seq_length, "a plan of ", plan.seq_length,
        " positions for data of ", config.seq_length);
  check_usage(
      vocabulary.end_of_document >= 0 ||
          !(config.eod_mask_loss || config.reset_position_ids || config.reset_attention_mask),
      "--eod-mask-loss, --reset-position-ids and --reset-attention-mask need a tokenizer "
      "with an end-of-document token");
  return std::make_unique<BatchLoader>(
      make_sample_source(config, split, plan.num_samples, plan.seed, vocabulary), plan,
      BatchOptions{.vocabulary = vocabulary,
                   .eod_mask_loss = config.eod_mask_loss,
                   .reset_position_ids = config.reset_position_ids,
                   .reset_attention_mask = config.reset_attention_mask});
}

}  // namespace phalanx
