// Training speed on the CPU: whole steps (forward, backward, clipping, AdamW) of two model sizes,
// as tokens/s and as a fraction of the arithmetic peak measured in the same run.
//
//   train_cpu [--model S,M] [--copies 1,2,3] [--precision fp32,bf16] [--steps 7] [--threads N]
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <chrono>
#include <sstream>

#include "core/model/phd_stage.h"
#include "kernels/base/philox.h"
#include "kernels/make_backend.h"
#include "parallel/distributed_optimizer.h"
#include "parallel/pipeline_schedule.h"
#include "tests/bench/peak.h"

namespace phalanx {
namespace {

/// One line of the table.
struct Case {
  std::string model;  // "S" or "M"
  int64_t copies = 1;
  std::string precision;  // "fp32" or "bf16"
};

struct Options {
  std::vector<Case> cases;
  int steps = 7;
  int threads = 0;
};

struct Peaks {
  double f32 = 0;
  double bf16 = 0;
};

/// Llama-style: Pre-Norm, no q or k norm, tied head; copies as PHD-CSWA-K-16-32.
ModelConfig model_config(const Case& which) {
  ModelConfig config{.num_layers = 6,
                     .hidden_size = 256,
                     .ffn_hidden_size = 704,
                     .num_attention_heads = 4,
                     .vocab_size = 8192};
  if (which.model == "M") {
    config.num_layers = 12;
    config.hidden_size = 768;
    config.ffn_hidden_size = 2048;
    config.num_attention_heads = 12;
    config.vocab_size = 32000;
  }
  config.norm_scheme = NormScheme::pre_norm;
  config.init_method = InitScheme::normal;
  config.phd = PhdMode::cswa;
  config.phd_copies = which.copies;
  config.phd_window = 16;
  config.phd_chunk = 32;
  return config;
}

StageShape stage_shape(const Case& which) {
  if (which.model == "M") return {.positions = 1024, .sequences = 1};
  return {.positions = 256, .sequences = 16};
}

/// Hidden keys that the copies from `first_copy` on see, per position on average.
double hidden_keys(const ModelConfig& config, int64_t positions, int64_t first_copy) {
  const AttentionMask mask = attention_mask(config, 0);
  int64_t keys = 0;
  for (int64_t n = 0; n < positions; ++n)
    for (int64_t copy = std::max<int64_t>(1, first_copy); copy < config.copies(); ++copy)
      keys += (n - mask.first_hidden_position(n)) * (config.copies() - 1) + copy;
  return static_cast<double>(keys) / static_cast<double>(positions);
}

/// Training FLOPs per original token: matrix products and causal attention, forward plus twice
/// that for the backward. The last layer computes only what the last copy needs.
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

/// One rank's whole training system. Gradients are reduced in a group of one, so this is the
/// trainer's step without its log.
class TrainingSystem {
 public:
  TrainingSystem(const Case& which, int threads)
      : model_(model_config(which)),
        shape_(stage_shape(which)),
        batch_{mock_batch(shape_, model_.vocab_size)},
        backend_(make_backend(Device::cpu, {.num_threads = threads})),
        stage_(model_, store_, *backend_, groups_),
        gradients_(allocated(which), *backend_, groups_, {}),
        optimizer_(store_, gradients_, *backend_, groups_, config_) {
    optimizer_.initialise(1234);
    schedule_ = make_schedule(PipelineScheduleKind::automatic, {});
    stage_.allocate(shape_, store_.dtype(), slots_of(schedule_, 1));
  }

  int64_t tokens() const { return shape_.positions * shape_.sequences; }
  double flops() const {
    return flops_per_token(model_, shape_.positions) * static_cast<double>(tokens());
  }

  /// One step; returns its loss.
  double step() {
    gradients_.zero();
    stage_.begin_step(batch_, {.loss_tokens = tokens()}, gradients_);
    run_pipeline(schedule_, stage_, *groups_.pp, 1);
    gradients_.finish_sync();
    const double norm = optimizer_.gradient_norm();
    optimizer_.step(config_.lr, clip_factor(norm, config_.clip_grad));
    gradients_.gather_weights();
    return stage_.loss_sums().cross_entropy / static_cast<double>(tokens());
  }

 private:
  ParameterStore& allocated(const Case& which) {
    store_.allocate(*backend_, which.precision == "bf16" ? DType::bf16 : DType::f32);
    return store_;
  }

  ModelConfig model_;
  OptimizerConfig config_;
  StageShape shape_;
  std::vector<MicroBatch> batch_;
  std::unique_ptr<Backend> backend_;
  ProcessGroups groups_ = make_single_process_groups();
  ParameterStore store_;
  PhdStage stage_;
  GradientBuffer gradients_;
  DistributedOptimizer optimizer_;
  std::vector<PipelineAction> schedule_;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void run_case(const Case& which, const Options& options, const Peaks& peaks) {
  constexpr int kWarmUp = 2;  // first touches of memory, matrix-product primitives made once
  TrainingSystem system(which, options.threads);
  std::vector<double> seconds;
  double loss = 0;
  for (int step = 0; step < options.steps + kWarmUp; ++step) {
    const auto begin = std::chrono::steady_clock::now();
    loss = system.step();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    if (step >= kWarmUp) seconds.push_back(elapsed.count());
  }
  const double time = median(seconds);
  const double rate = system.flops() / time;
  const double peak = which.precision == "bf16" && peaks.bf16 > 0 ? peaks.bf16 : peaks.f32;
  fmt::print(
      "{} K={} {}: {:8.1f} tokens/s  {:7.1f} ms/step (best {:7.1f})  {:6.1f} GFLOP/s  {:4.1f} % of "
      "peak  loss {:.4f}\n",
      which.model, which.copies, which.precision, static_cast<double>(system.tokens()) / time,
      time * 1e3, *std::min_element(seconds.begin(), seconds.end()) * 1e3, rate * 1e-9,
      100 * rate / peak, loss);
  std::fflush(stdout);
}

/// The words of "a,b,c".
std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> found;
  std::istringstream stream(text);
  for (std::string word; std::getline(stream, word, ',');) found.push_back(word);
  return found;
}

Options parse(int argc, char** argv) {
  namespace po = boost::program_options;
  Options options;
  std::string models, copies, precisions;
  po::options_description table("train_cpu: training speed of models S and M");
  table.add_options()("help", "this text")                                                      //
      ("model", po::value(&models)->default_value("S,M"), "S, M or both")                       //
      ("copies", po::value(&copies)->default_value("1,2,3"), "K, several allowed")              //
      ("precision", po::value(&precisions)->default_value("fp32,bf16"), "")                     //
      ("steps", po::value(&options.steps)->default_value(7), "timed steps; the median counts")  //
      ("threads", po::value(&options.threads)->default_value(omp_get_max_threads()), "");
  po::variables_map values;
  po::store(po::parse_command_line(argc, argv, table), values);
  po::notify(values);
  if (values.count("help") > 0) {
    fmt::print("{}", (std::ostringstream() << table).str());
    return options;
  }
  for (const std::string& model : words(models)) {
    check_usage(model == "S" || model == "M", "--model ", model, ": use S or M");
    for (const std::string& k : words(copies))
      for (const std::string& precision : words(precisions)) {
        check_usage(precision == "fp32" || precision == "bf16", "--precision ", precision,
                    ": use fp32 or bf16");
        options.cases.push_back({model, std::stoll(k), precision});
      }
  }
  return options;
}

void run(const Options& options) {
  if (options.cases.empty()) return;
  const Peaks peaks{measure_f32_peak(options.threads), measure_bf16_peak(options.threads)};
  fmt::print("{}, {} threads: peak {:.0f} GFLOP/s fp32, {:.0f} bf16\n", processor_name(),
             options.threads, peaks.f32 * 1e-9, peaks.bf16 * 1e-9);
  for (const Case& which : options.cases) run_case(which, options, peaks);
}

}  // namespace
}  // namespace phalanx

int main(int argc, char** argv) {
  try {
    phalanx::run(phalanx::parse(argc, argv));
  } catch (const std::exception& error) {
    fmt::print(stderr, "train_cpu: {}\n", error.what());
    return 2;
  }
}
