// Times matrix products that are large enough to run at full speed.
#include "core/train/peak_flops.h"

#include <algorithm>
#include <chrono>

namespace phalanx {
namespace {

constexpr double kBudgetSeconds = 0.3;

/// Products of this size, so many between two looks at the clock: a GPU is only filled by large
/// ones, and only busy while the next is queued.
struct Trial {
  int64_t size;
  int64_t products;
};
constexpr Trial trial_of(Device device) {
  return device == Device::cpu ? Trial{1024, 1} : Trial{4096, 10};
}

/// Of the trial's size, or as much smaller as the operands must be.
int64_t size_within(int64_t most_bytes, int64_t size, int64_t bytes_per_entry) {
  while (size > 1 && size * size * bytes_per_entry > most_bytes) size /= 2;
  return size;
}

double seconds_of_product(Backend& backend, const Tensor& c, const Tensor& a, const Tensor& b) {
  const int64_t products = trial_of(backend.device()).products;
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < products; ++i) backend.matmul(c, a, b, {});
  backend.synchronize();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() /
         static_cast<double>(products);
}

}  // namespace

double measure_peak_flops(Backend& backend, DType dtype, int64_t most_bytes) {
  const DType accumulator = accumulator_dtype(dtype);
  const int64_t size = size_within(most_bytes, trial_of(backend.device()).size,
                                   2 * dtype_bytes(dtype) + dtype_bytes(accumulator));
  const int64_t operand_bytes = size * size * dtype_bytes(dtype);
  const auto a_block = backend.allocate(operand_bytes);
  const auto b_block = backend.allocate(operand_bytes);
  const auto c_block = backend.allocate(size * size * dtype_bytes(accumulator));
  const Tensor a{a_block.get(), {size, size}, dtype, backend.device()};
  const Tensor b{b_block.get(), {size, size}, dtype, backend.device()};
  const Tensor c{c_block.get(), {size, size}, accumulator, backend.device()};
  // Ones, because zeros would let a processor save power and look faster than it is.
  backend.fill(a, 1.0);
  backend.fill(b, 1.0);
  seconds_of_product(backend, c, a, b);  // the first one builds the primitive
  double best = seconds_of_product(backend, c, a, b);
  for (double spent = best; spent < kBudgetSeconds;) {
    const double seconds = seconds_of_product(backend, c, a, b);
    best = std::min(best, seconds);
    spent += seconds * static_cast<double>(trial_of(backend.device()).products);
  }
  return 2.0 * static_cast<double>(size * size * size) / best;
}

}  // namespace phalanx
