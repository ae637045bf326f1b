// Times matrix products that are large enough to run at full speed.
#include "core/train/peak_flops.h"

#include <algorithm>
#include <chrono>

namespace phalanx {
namespace {

constexpr int64_t kSize = 1024;
constexpr double kBudgetSeconds = 0.3;

double seconds_of_product(Backend& backend, const Tensor& c, const Tensor& a, const Tensor& b) {
  const auto begin = std::chrono::steady_clock::now();
  backend.matmul(c, a, b, {});
  backend.synchronize();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

double measure_peak_flops(Backend& backend, DType dtype) {
  const DType accumulator = accumulator_dtype(dtype);
  const int64_t operand_bytes = kSize * kSize * dtype_bytes(dtype);
  const auto a_block = backend.allocate(operand_bytes);
  const auto b_block = backend.allocate(operand_bytes);
  const auto c_block = backend.allocate(kSize * kSize * dtype_bytes(accumulator));
  const Tensor a{a_block.get(), {kSize, kSize}, dtype, backend.device()};
  const Tensor b{b_block.get(), {kSize, kSize}, dtype, backend.device()};
  const Tensor c{c_block.get(), {kSize, kSize}, accumulator, backend.device()};
  // Ones, because zeros would let a processor save power and look faster than it is.
  backend.fill(a, 1.0);
  backend.fill(b, 1.0);
  seconds_of_product(backend, c, a, b);  // the first one builds the primitive
  double best = seconds_of_product(backend, c, a, b);
  for (double spent = best; spent < kBudgetSeconds;) {
    const double seconds = seconds_of_product(backend, c, a, b);
    best = std::min(best, seconds);
    spent += seconds;
  }
  return 2.0 * kSize * kSize * kSize / best;
}

}  // namespace phalanx
