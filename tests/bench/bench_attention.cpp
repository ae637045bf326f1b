// Times attention on the CPU and prints GFLOP/s of useful work (visible pairs only) beside the
// multiply-add peak of one thread and of all threads, measured in the same run.
//
//   bench_attention [rounds] [threads] [wall|cpu]     (cpu: only with 1 thread)
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <vector>

#include "kernels/attention_tiles.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/tile_vector.h"

namespace phalanx {
namespace {

/// Wall clock, or with `cpu` the time this process ran: on a shared machine the latter tells what
/// one thread could do alone.
bool use_cpu_time = false;
double seconds() {
  timespec now{};
  clock_gettime(use_cpu_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// Multiply-adds of T per second on `threads` threads, in GFLOP/s: independent chains in registers.
template <class T>
double peak(int threads) {
  using Traits = TileTraits<T>;
  using Lanes = typename Traits::Lanes;
  constexpr int kChains = 12;
  constexpr int64_t kSteps = 500'000;
  double sink = 0;
  const double start = seconds();
#pragma omp parallel num_threads(threads) reduction(+ : sink)
  {
    typename Traits::Stored a[2] = {typename Traits::Stored(0.5F), typename Traits::Stored(0.5F)};
    typename Lanes::Type sums[kChains];
    for (int i = 0; i < kChains; ++i) sums[i] = Lanes::broadcast(static_cast<float>(i));
    typename Lanes::Type b = Lanes::broadcast(0.25F);
    for (int64_t step = 0; step < kSteps; ++step) {
      asm volatile("" : "+x"(b));  // the loop cannot be folded
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) sums[i] = Traits::multiply_add(a, sums[i], b);
    }
    for (const auto& sum : sums) sink += sum[0];
  }
  const double elapsed = seconds() - start;
  if (sink == 1.0) std::puts("");  // the sums are used
  const double flops = 2.0 * Lanes::kLanes * Traits::kPack * kChains * double(kSteps) * threads;
  return flops / elapsed * 1e-9;
}

struct Setup {
  const char* name;
  int64_t batch, heads, positions, head_dim, copies;
};

template <class T>
std::vector<T> random_values(int64_t count, uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<T> values(static_cast<size_t>(count));
  for (T& x : values) x = T(normal(engine));
  return values;
}

int64_t visible_pairs(const AttentionMask& mask, int64_t positions) {
  int64_t pairs = 0;
  for (int64_t n = 0; n < positions; ++n)
    for (int64_t copy = 0; copy < mask.copies; ++copy)
      for (int64_t key_copy = 0; key_copy < mask.copies; ++key_copy) {
        const PositionRange range = visible_keys(mask, {n, copy}, key_copy, 0);
        pairs += std::max<int64_t>(0, range.end - range.begin);
      }
  return pairs;
}

struct Timing {
  double best, median;
};

template <class Body>
Timing measure(int rounds, Body body) {
  std::vector<double> times;
  body();  // warm up: workspaces grow here
  for (int round = 0; round < rounds; ++round) {
    const double start = seconds();
    body();
    times.push_back(seconds() - start);
  }
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
}

template <class T>
void run(const Setup& s, const char* type, int rounds, int threads) {
  using Real = Accumulator<T>;
  const AttentionMask mask{.copies = s.copies, .window = 16, .chunk = 32};
  const Shape query_shape{s.batch, s.heads, s.positions, s.copies, s.head_dim};
  const Shape key_shape{s.copies, s.batch, s.heads, s.positions, s.head_dim};
  const Shape out_shape{s.positions, s.batch, s.copies, s.heads * s.head_dim};
  const Shape row_shape{s.batch, s.heads, s.positions, s.copies};
  const int64_t count = query_shape.numel();
  auto q = random_values<T>(count, 1), k = random_values<T>(count, 2);
  auto v = random_values<T>(count, 3), dout = random_values<T>(count, 4);
  std::vector<T> out(q.size()), dq(q.size()), dk(q.size()), dv(q.size());
  std::vector<Real> lse(q.size()), delta(q.size());
  const AttentionInputs inputs{.q = cpu_tensor(q.data(), query_shape),
                               .k = cpu_tensor(k.data(), key_shape),
                               .v = cpu_tensor(v.data(), key_shape),
                               .mask = mask,
                               .document_start = {},
                               .scale = 1.0 / std::sqrt(double(s.head_dim)),
                               .query_copies = s.copies};
  const Tensor out_tensor = cpu_tensor(out.data(), out_shape);
  const Tensor lse_tensor = cpu_tensor(lse.data(), row_shape);
  const Timing forward =
      measure(rounds, [&] { cpu_attention_forward(out_tensor, lse_tensor, inputs, threads); });
  const Timing backward = measure(rounds, [&] {
    cpu_attention_backward({.gradients = {.dq = cpu_tensor(dq.data(), query_shape),
                                          .dk = cpu_tensor(dk.data(), key_shape),
                                          .dv = cpu_tensor(dv.data(), key_shape)},
                            .delta = cpu_tensor(delta.data(), row_shape),
                            .dout = cpu_tensor(dout.data(), out_shape),
                            .out = out_tensor,
                            .lse = lse_tensor},
                           inputs, threads);
  });
  double top = 0;
  for (int i = 0; i < 5; ++i) top = std::max(top, peak<T>(threads));
  const double product = 2.0 * s.head_dim * visible_pairs(mask, s.positions) * s.batch * s.heads;
  const auto print = [&](const char* name, double products, Timing time) {
    const double best = products * product / time.best * 1e-9;
    const double median = products * product / time.median * 1e-9;
    std::printf(
        "%-22s K=%ld %-4s %-8s best %6.1f GFLOP/s (%2.0f %%)  median %6.1f (%2.0f %%)  "
        "peak %5.1f  %8.3f ms\n",
        s.name, s.copies, type, name, best, 100 * best / top, median, 100 * median / top, top,
        time.best * 1e3);
  };
  print("forward", 2, forward);
  print("backward", 5, backward);
}

}  // namespace
}  // namespace phalanx

int main(int argc, char** argv) {
  using phalanx::Setup;
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 10;
  const int threads = argc > 2 ? std::atoi(argv[2]) : omp_get_max_threads();
  phalanx::use_cpu_time = argc > 3 && std::strcmp(argv[3], "cpu") == 0;
  std::printf("%d rounds, %d threads\n", rounds, threads);
  for (const int64_t copies : {1, 2, 3}) {
    for (const Setup& setup : {Setup{"S=256 B=16 A=4 D=64", 16, 4, 256, 64, copies},
                               Setup{"S=1024 B=1 A=12 D=64", 1, 12, 1024, 64, copies}}) {
      phalanx::run<float>(setup, "f32", rounds, threads);
      phalanx::run<phalanx::BFloat16>(setup, "bf16", rounds, threads);
    }
  }
}
