// Loops that keep every multiplier of a core busy.
#include "tests/bench/peak.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace phalanx {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
// Independent sums: more than latency (4 to 5 cycles) times two pipes, fewer than 16 registers.
constexpr int kChains = 12;
constexpr int64_t kSteps = 200000;
constexpr int kRounds = 10;

using Register = float __attribute__((vector_size(kLanes * sizeof(float))));

void f32_chains() {
  Register sums[kChains] = {};
  const Register factor = Register{} + 0.5F;
  for (int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (Register& sum : sums) {
      sum = sum * factor + factor;
      asm volatile("" : "+v"(sum));  // the sum stays in its register and no step is dropped
    }
  }
}

/// FLOP/s of `work` on all threads, `flops` per thread and round; the best round.
template <class Work>
double best_rate(int threads, double flops, Work work) {
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    const auto begin = std::chrono::steady_clock::now();
#pragma omp parallel num_threads(threads)
    work();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::max(best, flops * threads / seconds.count());
  }
  return best;
}

}  // namespace

double measure_f32_peak(int threads) {
  return best_rate(threads, 2.0 * kLanes * kChains * kSteps, f32_chains);
}

#ifdef __AVX512BF16__
double measure_bf16_peak(int threads) {
  const auto chains = [] {
    __m512 sums[kChains] = {};
    const __m512bh factor = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5F), _mm512_set1_ps(0.5F));
    for (int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
      for (__m512& sum : sums) {
        sum = _mm512_dpbf16_ps(sum, factor, factor);
        asm volatile("" : "+v"(sum));
      }
    }
  };
  return best_rate(threads, 4.0 * 16 * kChains * kSteps, chains);  // two products and sums a lane
}
#else
double measure_bf16_peak(int) {
  return 0;
}
#endif

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown processor";
}

}  // namespace phalanx
