// Attention on a GPU: TFLOP/s of useful work (visible pairs only), forward and backward, in bf16,
// for PHD-CSWA-K-16-32 with K copies. attention_torch.py prints the same table for PyTorch.
//
//   attention_cuda [--dims 64,128] [--copies 1,2,3,4] [--positions 2048,...] [--rounds 10]
#include <fmt/format.h>

#include <boost/program_options.hpp>
#include <iostream>

#include "core/model/model_cost.h"
#include "kernels/base/philox.h"
#include "kernels/make_backend.h"
#include "tests/bench/training_system.h"

namespace phalanx {
namespace {

struct Options {
  std::string dims, copies, positions;
  int64_t tokens = 32768;  // positions x sequences: the same work for every length
  int64_t width = 2048;    // heads x head dim
  int rounds = 10;
};

struct Case {
  int64_t head_dim, copies, positions, sequences, heads;
};

class AttentionRun {
 public:
  AttentionRun(const Case& which, Backend& backend) : which_(which), ops_(backend) {
    const auto [d, k, s, b, a] = which;
    const Shape queries{b, a, s, k, d};
    const Shape keys{k, b, a, s, d};
    const Shape rows{s, b, k, a * d};
    inputs_ = {.q = random("q", queries), .k = random("k", keys), .v = random("v", keys)};
    inputs_.mask = {.copies = k, .window = 16, .chunk = 32};
    inputs_.scale = 1 / std::sqrt(static_cast<double>(d));
    inputs_.query_copies = k;
    out_ = tensor(rows, DType::bf16);
    lse_ = tensor({b, a, s, k}, DType::f32);
    backward_ = {.gradients = {.dq = tensor(queries, DType::bf16),
                               .dk = tensor(keys, DType::bf16),
                               .dv = tensor(keys, DType::bf16)},
                 .delta = tensor({b, a, s, k}, DType::f32),
                 .dout = random("dout", rows),
                 .out = out_,
                 .lse = lse_};
  }

  void forward() { ops_.attention_forward(out_, lse_, inputs_); }
  void backward() { ops_.attention_backward(backward_, inputs_); }

  /// Visible (query, key) pairs of all heads: 4 D FLOPs each forward, 10 D backward.
  double pairs() const {
    const VisiblePairs seen = visible_pairs(inputs_.mask, which_.positions);
    const auto visible = static_cast<double>(seen.original + seen.hidden);
    return visible * static_cast<double>(which_.sequences * which_.heads);
  }

 private:
  Tensor tensor(const Shape& shape, DType dtype) {
    Tensor made{.shape = shape, .dtype = dtype, .device = ops_.device()};
    blocks_.push_back(ops_.allocate(made.bytes()));
    made.data = blocks_.back().get();
    return made;
  }
  Tensor random(const char* name, const Shape& shape) {
    const Tensor made = tensor(shape, DType::bf16);
    ops_.truncated_normal(made.view({made.numel()}),
                          {.random = Philox(1, name), .global_columns = made.numel()});
    return made;
  }

  Case which_;
  Backend& ops_;
  std::vector<std::shared_ptr<void>> blocks_;
  AttentionInputs inputs_;
  Tensor out_, lse_;
  Backend::AttentionBackward backward_;
};

/// Median seconds of `op` by the device's own clock, each round alone on the device.
template <class Op>
double seconds_of(Backend& backend, int rounds, Op&& op) {
  op();  // the first launch loads the kernel
  Trace trace(backend.device_clock());
  backend.synchronize();
  trace.start();
  for (int round = 0; round < rounds; ++round) op();
  trace.stop();
  std::vector<double> seconds;
  for (const TraceEvent& event : trace.take())
    seconds.push_back(event.device_end >= 0 ? event.device_end - event.device_begin
                                            : event.end - event.begin);
  return median(seconds);
}

void run_case(const Case& which, const Options& options, Backend& backend) {
  AttentionRun run(which, backend);
  const double work = run.pairs() * static_cast<double>(which.head_dim) * 1e-12;
  const double forward = seconds_of(backend, options.rounds, [&] { run.forward(); });
  const double backward = seconds_of(backend, options.rounds, [&] { run.backward(); });
  fmt::print(
      "D={:<4} K={} N={:<6} B={:<3} forward {:8.3f} ms {:6.1f} TFLOP/s   backward {:8.3f} ms "
      "{:6.1f} TFLOP/s\n",
      which.head_dim, which.copies, which.positions, which.sequences, forward * 1e3,
      4 * work / forward, backward * 1e3, 10 * work / backward);
  std::fflush(stdout);
}

Options parse(int argc, char** argv) {
  namespace po = boost::program_options;
  Options options;
  po::options_description table("attention_cuda: TFLOP/s of attention on a GPU");
  table.add_options()("help", "this text")                                                       //
      ("dims", po::value(&options.dims)->default_value("64,128"), "head dims")                   //
      ("copies", po::value(&options.copies)->default_value("1,2,3,4"), "K, several allowed")     //
      ("positions", po::value(&options.positions)->default_value("2048,4096,8192,16384,32768"),  //
       "sequence lengths")                                                                       //
      ("tokens", po::value(&options.tokens)->default_value(32768), "positions x sequences")      //
      ("width", po::value(&options.width)->default_value(2048), "heads x head dim")              //
      ("rounds", po::value(&options.rounds)->default_value(10), "the median counts");
  po::variables_map values;
  po::store(po::parse_command_line(argc, argv, table), values);
  po::notify(values);
  check_usage(options.rounds >= 1, "--rounds ", options.rounds, " must be at least 1");
  if (values.count("help") > 0) {
    std::cout << table;
    options.dims.clear();
  }
  return options;
}

void run(const Options& options) {
  if (options.dims.empty()) return;
  const auto backend = make_backend(Device::cuda);
  for (const std::string& dim : words(options.dims))
    for (const std::string& copies : words(options.copies))
      for (const std::string& positions : words(options.positions)) {
        const int64_t d = std::stoll(dim);
        const int64_t s = std::stoll(positions);
        run_case({.head_dim = d,
                  .copies = std::stoll(copies),
                  .positions = s,
                  .sequences = std::max<int64_t>(1, options.tokens / s),
                  .heads = options.width / d},
                 options, *backend);
      }
}

}  // namespace
}  // namespace phalanx

int main(int argc, char** argv) {
  try {
    phalanx::run(phalanx::parse(argc, argv));
  } catch (const std::exception& error) {
    fmt::print(stderr, "attention_cuda: {}\n", error.what());
    return 2;
  }
}
