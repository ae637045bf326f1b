// Matrix products of training steps: GFLOP/s and share of the arithmetic peak measured beside them.
// Usage: bench_matmul [rounds] [wall|processor]. Rounds interleave all shapes, because other load
// on the machine comes and goes; best and median over rounds are printed. `processor` divides by
// the processor time of a thread instead of wall time, for machines that are never idle: it leaves
// out the time that threads sleep while they wait for each other.
#include <omp.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

#include "kernels/make_backend.h"
#include "tests/bench/peak.h"

namespace phalanx {
namespace {

bool use_processor_time = false;

/// Seconds that the rates below divide by.
double now() {
  timespec time{};
  clock_gettime(use_processor_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  const double seconds =
      static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  return use_processor_time ? seconds / omp_get_max_threads() : seconds;
}

enum class Kind { forward, input_gradient, weight_gradient };

struct Case {
  const char* name;
  int64_t m, n, k;  // of the forward product [m, k] x [n, k]^T
  Kind kind;
  DType dtype;
  std::vector<double> gflops{};
};

Tensor tensor_at(const std::shared_ptr<void>& block, const Shape& shape, DType dtype) {
  return {.data = block.get(), .shape = shape, .dtype = dtype, .device = Device::cpu};
}

/// Runs one product for about 50 ms and notes its rate.
void measure(Backend& ops, Case& product, const std::vector<std::shared_ptr<void>>& blocks) {
  const auto& [name, m, n, k, kind, dtype, rates] = product;
  const Tensor x = tensor_at(blocks[0], {m, k}, dtype);
  const Tensor w = tensor_at(blocks[1], {n, k}, dtype);
  const Tensor y = tensor_at(blocks[2], {m, n}, dtype);
  const Tensor dw = tensor_at(blocks[3], {n, k}, DType::f32);
  const auto run = [&] {
    if (kind == Kind::forward) ops.matmul(y, x, w, {.b = Transpose::yes});
    if (kind == Kind::input_gradient) ops.matmul(x, y, w, {});
    if (kind == Kind::weight_gradient)
      ops.matmul(dw, y, x, {.a = Transpose::yes, .accumulate = Accumulate::yes});
  };
  const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n * k);
  run();
  const int repeats = std::max(1, static_cast<int>(0.05 * 150e9 / flops));
  const double begin = now();
  for (int i = 0; i < repeats; ++i) run();
  product.gflops.push_back(flops * repeats / (now() - begin) * 1e-9);
}

std::vector<Case> all_cases() {
  struct Layer {
    const char* name;
    int64_t m, n, k;
  };
  const Layer layers[] = {{"S attention out", 4096, 256, 256}, {"S gate-up", 4096, 1408, 256},
                          {"S down", 4096, 256, 704},          {"S vocabulary", 1024, 8192, 256},
                          {"M qkv", 1024, 2304, 768},          {"M attention out", 1024, 768, 768},
                          {"M gate-up", 1024, 4096, 768},      {"M down", 1024, 768, 2048},
                          {"M vocabulary", 1024, 32000, 768}};
  std::vector<Case> cases;
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const Layer& layer : layers)
      for (const Kind kind : {Kind::forward, Kind::input_gradient, Kind::weight_gradient})
        cases.push_back({layer.name, layer.m, layer.n, layer.k, kind, dtype});
  return cases;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void report(const Case& product, double peak) {
  const char* kinds[] = {"NT forward", "NN input grad", "TN weight grad"};
  const double best = *std::max_element(product.gflops.begin(), product.gflops.end());
  const double middle = median(product.gflops);
  std::printf("%-5s %-16s %-15s %6ld %6ld %5ld  %7.1f %7.1f  %4.0f%% %4.0f%%\n",
              dtype_name(product.dtype), product.name, kinds[static_cast<int>(product.kind)],
              static_cast<long>(product.m), static_cast<long>(product.n),
              static_cast<long>(product.k), best, middle, 100.0 * best / peak,
              100.0 * middle / peak);
}

int run(int rounds) {
  const std::unique_ptr<Backend> ops = make_backend(Device::cpu);
  const int64_t block_bytes = int64_t{32000} * 1024 * 4;
  std::vector<std::shared_ptr<void>> blocks;
  for (int i = 0; i < 4; ++i) {
    blocks.push_back(ops->allocate(block_bytes));
    ops->fill(tensor_at(blocks.back(), {block_bytes / 4}, DType::f32), 1e-3);
  }
  std::vector<Case> cases = all_cases();
  const int threads = omp_get_max_threads();
  const double f32_peak = measure_f32_peak(threads) * 1e-9;
  const double bf16_instruction_peak = measure_bf16_peak(threads) * 1e-9;
  const double bf16_peak = bf16_instruction_peak > 0.0 ? bf16_instruction_peak : f32_peak;
  for (int round = 0; round < rounds; ++round)
    for (Case& product : cases) measure(*ops, product, blocks);
  std::printf("%d threads, best peak: f32 %.0f, bf16 %.0f GFLOP/s\n", threads, f32_peak, bf16_peak);
  std::printf("%-38s %6s %6s %5s  %7s %7s  %5s %5s\n", "GFLOP/s and share of peak", "m", "n", "k",
              "best", "median", "best", "med.");
  for (const Case& product : cases)
    report(product, product.dtype == DType::bf16 ? bf16_peak : f32_peak);
  return 0;
}

}  // namespace
}  // namespace phalanx

int main(int argc, char** argv) {
  phalanx::use_processor_time = argc > 2 && std::strcmp(argv[2], "processor") == 0;
  return phalanx::run(argc > 1 ? std::atoi(argv[1]) : 5);
}
