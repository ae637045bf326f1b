// Golden losses: 20 training steps of tiny models against tests/golden/golden_losses.py, which was
// written from the papers' equations in PyTorch and computes every row under a dense mask.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/model/phd_stage.h"
#include "core/train/learning_rate.h"
#include "kernels/base/philox.h"
#include "kernels/make_backend.h"
#include "parallel/distributed_optimizer.h"
#include "parallel/pipeline_schedule.h"

namespace phalanx {
namespace {

using nlohmann::json;

const json& golden() {
  static const json numbers = [] {
    std::ifstream file(PHALANX_SOURCE_DIR "/tests/golden/golden_losses.json");
    return json::parse(file);
  }();
  return numbers;
}

/// Sets the fields that `values` names by their option names; `used` counts them.
struct JsonFields {
  const json& values;
  size_t used = 0;

  void group(const char*) {}
  template <class Field>
  void operator()(const char* name, Field& field, const char*) {
    if (!values.contains(name)) return;
    ++used;
    if constexpr (NamedEnum<Field>)
      field = parse_enum<Field>(values.at(name).get<std::string>());
    else
      field = values.at(name).get<Field>();
  }
};

template <class Config>
Config config_from(const json& values) {
  Config config;
  JsonFields fields{values};
  visit_fields(config, fields);
  check(fields.used == values.size(), "the golden file names ", values.size() - fields.used,
        " options that the configuration does not have");
  return config;
}

/// The tokens of step `step`, drawn as in the script: rows [micro-batch, sequence, S + 1].
std::vector<MicroBatch> golden_batch(int64_t step, int64_t vocab_size) {
  const auto micro_batches = golden().at("micro_batches").get<int64_t>();
  const auto sequences = golden().at("sequences").get<int64_t>();
  const auto positions = golden().at("positions").get<int64_t>();
  const auto ignored_share = golden().at("ignored_share").get<double>();
  const auto seed = golden().at("seed").get<uint64_t>();
  const Philox tokens(seed, "golden.tokens");
  const Philox ignored(seed, "golden.ignored");
  const int64_t first = step % golden().at("distinct_batches").get<int64_t>() * micro_batches;
  const auto token = [&](uint64_t index) {
    return static_cast<int32_t>(tokens.uniform(index) * static_cast<double>(vocab_size));
  };
  std::vector<MicroBatch> batch(static_cast<size_t>(micro_batches));
  for (int64_t m = 0; m < micro_batches; ++m) {
    MicroBatch& micro_batch = batch[static_cast<size_t>(m)];
    micro_batch.positions = positions;
    micro_batch.sequences = sequences;
    for (int64_t s = 0; s < positions; ++s) {
      for (int64_t b = 0; b < sequences; ++b) {
        const int64_t row = (first + m) * sequences + b;
        const auto index = static_cast<uint64_t>(row * (positions + 1) + s);
        micro_batch.tokens.push_back(token(index));
        const bool counted = ignored.uniform(index + 1) >= ignored_share;
        micro_batch.targets.push_back(counted ? token(index + 1) : kIgnoreTarget);
      }
    }
  }
  return batch;
}

int64_t count_targets(const std::vector<MicroBatch>& batch) {
  int64_t count = 0;
  for (const MicroBatch& micro_batch : batch)
    count += std::count_if(micro_batch.targets.begin(), micro_batch.targets.end(),
                           [](int32_t target) { return target != kIgnoreTarget; });
  return count;
}

/// One rank's whole training system around a tiny model.
class GoldenRun {
 public:
  GoldenRun(const json& golden_case, DType dtype)
      : model_(config_from<ModelConfig>(golden_case.at("model"))),
        optimizer_config_(config_from<OptimizerConfig>(golden().at("optimizer"))),
        stage_(model_, store_, *backend_, groups_),
        gradients_((store_.allocate(*backend_, dtype), store_), *backend_, groups_, {}),
        optimizer_(store_, gradients_, *backend_, groups_, optimizer_config_) {
    optimizer_.initialise(golden().at("seed").get<uint64_t>());
    if (dtype == DType::f64) round_weights_to_single();
    const auto micro_batches = golden().at("micro_batches").get<int64_t>();
    schedule_ =
        make_schedule(PipelineScheduleKind::automatic, {.num_micro_batches = micro_batches});
    stage_.allocate({.positions = golden().at("positions").get<int64_t>(),
                     .sequences = golden().at("sequences").get<int64_t>()},
                    dtype, slots_of(schedule_, 1));
  }

  struct Step {
    double loss;
    double norm;
    double learning_rate;
  };
  Step step(int64_t index) {
    const std::vector<MicroBatch> batch = golden_batch(index, model_.vocab_size);
    const int64_t tokens = count_targets(batch);
    gradients_.zero();
    stage_.begin_step(batch,
                      {.loss_tokens = tokens, .micro_batches = static_cast<int64_t>(batch.size())},
                      gradients_);
    run_pipeline(schedule_, stage_, *groups_.pp, 1);
    gradients_.finish_sync();
    const double norm = optimizer_.gradient_norm();
    const double rate = learning_rate(optimizer_config_, 0, optimizer_.num_steps());
    optimizer_.step(rate, clip_factor(norm, optimizer_config_.clip_grad));
    gradients_.gather_weights();
    return {stage_.loss_sums().cross_entropy / static_cast<double>(tokens), norm, rate};
  }

 private:
  /// The script starts every precision from weights rounded to f32.
  void round_weights_to_single() {
    auto* weights = store_.flat_value().as<double>();
    for (int64_t i = 0; i < store_.numel(); ++i) weights[i] = static_cast<float>(weights[i]);
  }

  ModelConfig model_;
  OptimizerConfig optimizer_config_;
  std::unique_ptr<Backend> backend_ = make_backend(Device::cpu);
  ProcessGroups groups_ = make_single_process_groups();
  ParameterStore store_;
  PhdStage stage_;
  GradientBuffer gradients_;
  DistributedOptimizer optimizer_;
  std::vector<PipelineAction> schedule_;
};

/// Allowed relative distance. The script's own deviation in f32 (or bf16) from f64 is one draw of
/// what rounding does to this model over 20 steps; ours is another draw, so a margin times it is
/// allowed. Errors scale with the rounding step, which carries the f32 deviation over to f64. In
/// bf16 the deviation is the largest of many coarse steps, a steadier number: half the margin. In
/// f64 the 20 steps end within tens of rounding steps, and builds with and without fused
/// multiply-add differ by several of such draws: four times the margin, still below 1e-12.
double tolerance(const json& golden_case, DType dtype, const char* what) {
  constexpr double kMargin = 8.0;
  const double single = golden_case.at("float32").at(what).get<double>();
  const double step = dtype_epsilon(DType::f32);
  if (dtype == DType::bf16) return kMargin / 2 * golden_case.at("bfloat16").at(what).get<double>();
  const double margin = dtype == DType::f64 ? 4 * kMargin : kMargin;
  return margin * std::max(single, step) * (dtype_epsilon(dtype) / step);
}

struct GoldenCase {
  std::string name;
  DType dtype;
};

void PrintTo(const GoldenCase& golden_case, std::ostream* out) {
  *out << golden_case.name << " in " << dtype_name(golden_case.dtype);
}

class Golden : public testing::TestWithParam<GoldenCase> {};

TEST_P(Golden, LossesAndGradientNormsMatchTheScript) {
  const DType dtype = GetParam().dtype;
  const json& golden_case = golden().at("cases").at(GetParam().name);
  const double loss_tolerance = tolerance(golden_case, dtype, "loss_deviation");
  const double norm_tolerance = tolerance(golden_case, dtype, "norm_deviation");
  GoldenRun run(golden_case, dtype);
  for (size_t step = 0; step < golden().at("steps").get<size_t>(); ++step) {
    const GoldenRun::Step got = run.step(static_cast<int64_t>(step));
    const double loss = golden_case.at("losses").at(step).get<double>();
    const double norm = golden_case.at("gradient_norms").at(step).get<double>();
    EXPECT_NEAR(got.loss, loss, loss * loss_tolerance) << "step " << step;
    EXPECT_NEAR(got.norm, norm, norm * norm_tolerance) << "step " << step;
    EXPECT_NEAR(got.learning_rate, golden_case.at("learning_rates").at(step).get<double>(), 1e-17);
  }
}

std::vector<GoldenCase> all_cases() {
  std::vector<GoldenCase> cases;
  for (const auto& [name, unused] : golden().at("cases").items())
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) cases.push_back({name, dtype});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, Golden, testing::ValuesIn(all_cases()), [](const auto& info) {
  return info.param.name + "_" + dtype_name(info.param.dtype);
});

}  // namespace
}  // namespace phalanx
