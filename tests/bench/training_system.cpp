// The training system of the benchmarks.
#include "tests/bench/training_system.h"

#include <algorithm>
#include <sstream>

#include "core/model/model_cost.h"
#include "kernels/base/philox.h"

namespace phalanx {
namespace {

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

double TrainingSystem::flops() const {
  const ModelCost cost = model_cost(model_, shape_.positions);
  return (cost.forward_flops_per_token + cost.backward_flops_per_token) *
         static_cast<double>(tokens());
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
