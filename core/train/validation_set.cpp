// Evaluation over a fixed set of samples.
#include "core/train/validation_set.h"
#include "core/checkpoint/fault_hook.h"
#include "kernels/base/flight_recorder.h"

#include <algorithm>

namespace phalanx {
namespace {

/// `source` with its last used sample repeated up to `num_samples`.
class PaddedSource final : public SampleSource {
 public:
  PaddedSource(std::unique_ptr<SampleSource> source, int64_t used, int64_t num_samples)
      : source_(std::move(source)), last_(used - 1), num_samples_(num_samples) {}

  int64_t num_samples() const override { return num_samples_; }
  void read(int64_t sample, std::span<int32_t> out) const override {
    source_->read(std::min(sample, last_), out);
  }
  std::string describe(int64_t sample) const override {
    return source_->describe(std::min(sample, last_));
  }

 private:
  std::unique_ptr<SampleSource> source_;
  int64_t last_;
  int64_t num_samples_;
};

/// Takes the loss from sequences [first, B).
void mask_sequences(MicroBatch& batch, int64_t first) {
  for (int64_t s = 0; s < batch.positions; ++s)
    for (int64_t b = std::max<int64_t>(0, first); b < batch.sequences; ++b)
      batch.targets[static_cast<size_t>(s * batch.sequences + b)] = kIgnoreTarget;
}

int64_t loss_tokens(const MicroBatch& batch) {
  return std::count_if(batch.targets.begin(), batch.targets.end(),
                       [](int32_t target) { return target != kIgnoreTarget; });
}

}  // namespace

bool ValidationSet::has_end(const DataConfig& config) {
  const auto& words = config.valid_data_path.empty() ? config.data_path : config.valid_data_path;
  return !config.mock_data && parse_blend(words).weights.empty();
}

ValidationSet::ValidationSet(const DataConfig& config, BatchPlan plan, const Vocabulary& vocabulary)
    : plan_(plan) {
  auto source = make_sample_source(config, DataSplit::valid,
                                   has_end(config) ? -1 : plan.num_samples, plan.seed, vocabulary);
  num_samples_ = std::min(source->num_samples(), plan.num_samples);
  check_usage(num_samples_ > 0, "the validation split holds less than one sample of ",
              plan.seq_length,
              " tokens; give it more in --split or --valid-data-path, or set "
              "--eval-interval 0");
  plan_.global_batch_size = plan.micro_batch_size * plan.num_shards;
  const int64_t batches = (num_samples_ + plan_.global_batch_size - 1) / plan_.global_batch_size;
  plan_.num_samples = batches * plan_.global_batch_size;
  loader_ = std::make_unique<BatchLoader>(
      std::make_unique<PaddedSource>(std::move(source), num_samples_, plan_.num_samples), plan_,
      BatchOptions{.vocabulary = vocabulary,
                   .eod_mask_loss = config.eod_mask_loss,
                   .reset_position_ids = config.reset_position_ids,
                   .reset_attention_mask = config.reset_attention_mask});
}

LossSums ValidationSet::evaluate_batch(PhdStage& stage, const GlobalBatch& batch, int64_t& tokens) {
  // One micro-batch per rank: the global batch is the smallest one.
  const MicroBatch& micro_batch = batch.micro_batches.front();
  const int64_t first = batch.first_sample + plan_.shard * plan_.micro_batch_size;
  const int64_t used = num_samples_ - first;
  if (used >= micro_batch.sequences) {
    tokens += loss_tokens(micro_batch);
    return stage.evaluate(micro_batch);
  }
  MicroBatch partial = micro_batch;
  mask_sequences(partial, used);
  tokens += loss_tokens(partial);
  return stage.evaluate(partial);
}

std::optional<ValidationMetrics> ValidationSet::evaluate(PhdStage& stage,
                                                         const ProcessGroups& groups,
                                                         const std::function<bool()>& stop) {
  const FlightRange evaluating(flight_entry(FlightKind::phase, "evaluate"));
  loader_->seek(0);
  LossSums sums;
  int64_t tokens = 0;
  for (int64_t n = 0; n < plan_.num_samples; n += plan_.global_batch_size) {
    if (stop()) return std::nullopt;
    fault_moment("evaluate", groups.world->rank());
    const LossSums part = evaluate_batch(stage, loader_->next(), tokens);
    sums.cross_entropy += part.cross_entropy;
    sums.z += part.z;
  }
  ValidationMetrics metrics;
  metrics.tokens = groups.dp->all_reduce(tokens, ReduceOp::sum);
  check(metrics.tokens > 0, "no token of the validation samples has a loss");
  const auto count = static_cast<double>(metrics.tokens);
  const LossSums global = sum_over_ranks(sums, groups);
  metrics.loss = global.cross_entropy / count;
  metrics.z_loss = global.z / count;
  return metrics;
}

}  // namespace phalanx
