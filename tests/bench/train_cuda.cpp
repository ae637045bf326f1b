// Training speed on a GPU: whole steps (forward, backward, clipping, AdamW) in bf16 of the sizes
// 550M and 1.2B at sequence length 4,096, as tokens/s and as model FLOP utilisation: of the data
// sheet's dense bf16 peak and of the matrix-product rate measured in the same run. Then where the
// time of a step goes, op by op.
//
//   train_cuda [--model 550m,1.2b] [--copies 1,2,3] [--steps 10] [--sequences 4] [--device cuda]
#include <fmt/format.h>

#include <boost/program_options.hpp>
#include <chrono>
#include <iostream>

#include "core/model/model_presets.h"
#include "core/train/peak_flops.h"
#include "core/train/step_profile.h"
#include "kernels/make_backend.h"
#include "tests/bench/training_system.h"

namespace phalanx {
namespace {

constexpr double kDataSheetPeak = 989e12;  // H100 SXM and H200, dense bf16

struct Options {
  std::string models, copies, device;
  int steps = 10;
  int64_t sequences = 4;
  int64_t positions = 4096;
  bool table = false;
};

/// Llama-style for K = 1, PHD-CSWA-K-16-32 beyond: Pre-Norm, no q or k norm.
ModelConfig model_config(const std::string& size, int64_t copies) {
  const ModelPreset* preset = find_model_preset("phd-" + size);
  check_usage(preset != nullptr, "--model ", size, ": use 151m, 550m or 1.2b");
  ModelConfig config = preset->model;
  config.vocab_size = 32000;
  config.norm_scheme = NormScheme::pre_norm;
  config.init_method = InitScheme::normal;
  config.phd_copies = copies;
  return config;
}

void run_case(const std::string& size, int64_t copies, const Options& options, Backend& backend,
              double product_rate) {
  constexpr int kWarmUp = 3;
  TrainingSystem system(model_config(size, copies),
                        {.positions = options.positions, .sequences = options.sequences},
                        DType::bf16, backend);
  std::vector<double> seconds;
  double loss = 0;
  for (int step = 0; step < options.steps + kWarmUp; ++step) {
    backend.synchronize();
    const auto begin = std::chrono::steady_clock::now();
    loss = system.step();
    backend.synchronize();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    if (step >= kWarmUp) seconds.push_back(elapsed.count());
  }
  const double time = median(seconds);
  const double rate = system.flops() / time;
  fmt::print(
      "{} K={}: {:9.0f} tokens/s  {:7.1f} ms/step  {:6.1f} TFLOP/s  {:4.1f} % of 989  {:4.1f} % of "
      "the measured products  loss {:.4f}\n",
      size, copies, static_cast<double>(system.tokens()) / time, time * 1e3, rate * 1e-12,
      100 * rate / kDataSheetPeak, 100 * rate / product_rate, loss);
  if (!options.table) return;
  Trace trace(backend.device_clock());
  trace.start();
  system.step();
  trace.stop();
  fmt::print("{}", profile_table(trace.take()));
}

Options parse(int argc, char** argv) {
  namespace po = boost::program_options;
  Options options;
  po::options_description table("train_cuda: training speed on a GPU");
  table.add_options()("help", "this text")                                                   //
      ("model", po::value(&options.models)->default_value("550m,1.2b"), "151m, 550m, 1.2b")  //
      ("copies", po::value(&options.copies)->default_value("1,2,3"), "K, several allowed")   //
      ("device", po::value(&options.device)->default_value("cuda"), "cuda or cpu")           //
      ("sequences", po::value(&options.sequences)->default_value(4), "per step")             //
      ("positions", po::value(&options.positions)->default_value(4096), "tokens of each")    //
      ("table", po::bool_switch(&options.table), "where the time goes, by op")               //
      ("steps", po::value(&options.steps)->default_value(10), "timed steps; the median counts");
  po::variables_map values;
  po::store(po::parse_command_line(argc, argv, table), values);
  po::notify(values);
  if (values.count("help") > 0) {
    std::cout << table;
    options.models.clear();
  }
  check_usage(options.steps >= 1, "--steps ", options.steps, " must be at least 1");
  check_usage(options.device == "cuda" || options.device == "cpu", "--device ", options.device,
              ": use cuda or cpu");
  return options;
}

void run(const Options& options) {
  if (options.models.empty()) return;
  const auto backend = make_backend(options.device == "cuda" ? Device::cuda : Device::cpu);
  const double product_rate = measure_peak_flops(*backend, DType::bf16);
  fmt::print("bf16 matrix products: {:.1f} TFLOP/s\n", product_rate * 1e-12);
  for (const std::string& size : words(options.models))
    for (const std::string& copies : words(options.copies))
      run_case(size, std::stoll(copies), options, *backend, product_rate);
}

}  // namespace
}  // namespace phalanx

int main(int argc, char** argv) {
  try {
    phalanx::run(phalanx::parse(argc, argv));
  } catch (const std::exception& error) {
    fmt::print(stderr, "train_cuda: {}\n", error.what());
    return 2;
  }
}
