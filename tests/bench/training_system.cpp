// The training system of the benchmarks.
#include "tests/bench/training_system.h"

#include <algorithm>
#include <sstream>

#include "kernels/base/philox.h"

namespace phalanx {
namespace {

/// Hidden keys that the copies from `first_copy` on see, per position on average.
double hidden_keys(const ModelConfig& config, int64_t positions, int64_t first_copy) {
  const AttentionMask mask = attention_mask(config, 0);
  int64_t keys = 0;
  for (int64_t n = 0; n < positions; ++n)
    for (int64_t copy = std::max<int64_t>(1, first_copy); copy < config.copies(); ++copy)
      keys += (n - mask.first_hidden_position(n)) * (config.copies() - 1) + copy;
  return static_cast<double>(keys) / static_cast<double>(positions);
}

MicroBatch mock_batch(const StageShape& shape, int64_t vocab_size) {
  MicroBatch batch{.positions = shape.positions, .sequences = shape.sequences};
  const Philox random(1234, "bench.tokens");
  const auto count = static_cast<uint64_t>(shape.positions * shape.sequences);
  const auto token = [&](uint64_t index) {
    return static_cast<int32_t>(random.uniform(index) * static_cast<double>(vocab_size));
  };
  for (uint64_t i = 0; i < count; ++i) {
    batch.tokens.push_back(token(i));
    batch.targets.push_back(token(i + count));
  }
  return batch;
}

}  // namespace

double flops_per_token(const ModelConfig& config, int64_t positions) {
  const auto h = static_cast<double>(config.hidden_size);
  const auto f = static_cast<double>(config.ffn_hidden_size);
  const auto k = static_cast<double>(config.copies());
  const double causal_keys = static_cast<double>(positions) / 2;
  double forward = 2 * h * static_cast<double>(config.padded_vocab_size());
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const bool last = layer + 1 == config.num_layers;
    const double rows = last ? 1 : k;
    const int64_t first_copy = last ? config.copies() - 1 : 0;
    const double keys = rows * causal_keys + hidden_keys(config, positions, first_copy);
    forward += 2 * (rows * (2 * h * h + 3 * h * f) + k * 2 * h * h) + 4 * h * keys;
  }
  return 3 * forward;
}

TrainingSystem::TrainingSystem(const ModelConfig& model, const StageShape& shape, DType dtype,
                               Backend& backend)
    : model_(model),
      shape_(shape),
      batch_{mock_batch(shape_, model_.vocab_size)},
      backend_(backend),
      groups_(make_single_process_groups()),
      stage_(model_, store_, backend_, groups_),
      gradients_(allocated(dtype), backend_, groups_, {}),
      optimizer_(store_, gradients_, backend_, groups_, config_) {
  optimizer_.initialise(1234);
  schedule_ = make_schedule(PipelineScheduleKind::automatic, {});
  stage_.allocate(shape_, store_.dtype(), slots_of(schedule_, 1));
}

ParameterStore& TrainingSystem::allocated(DType dtype) {
  store_.allocate(backend_, dtype);
  return store_;
}

double TrainingSystem::step() {
  gradients_.zero();
  stage_.begin_step(batch_, {.loss_tokens = tokens()}, gradients_);
  run_pipeline(schedule_, stage_, *groups_.pp, 1);
  gradients_.finish_sync();
  const double norm = optimizer_.gradient_norm();
  optimizer_.step(config_.lr, clip_factor(norm, config_.clip_grad));
  gradients_.gather_weights();
  return stage_.loss_sums().cross_entropy / static_cast<double>(tokens());
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> found;
  std::istringstream stream(text);
  for (std::string word; std::getline(stream, word, ',');) found.push_back(word);
  return found;
}

}  // namespace phalanx
