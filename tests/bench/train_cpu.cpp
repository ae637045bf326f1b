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

#include "kernels/make_backend.h"
#include "tests/bench/peak.h"
#include "tests/bench/training_system.h"

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

void run_case(const Case& which, const Options& options, const Peaks& peaks) {
  constexpr int kWarmUp = 2;  // first touches of memory, matrix-product primitives made once
  const auto backend = make_backend(Device::cpu, {.num_threads = options.threads});
  TrainingSystem system(model_config(which), stage_shape(which),
                        which.precision == "bf16" ? DType::bf16 : DType::f32, *backend);
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
