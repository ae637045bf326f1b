// Random initialisation at global element indices.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/packs.h"

namespace phalanx {
namespace {

/// Philox::truncated_normal with the device's functions. The draws are the same bits; logarithm,
/// sine and cosine may differ in the last bits of a double.
__device__ double truncated_normal(const Philox& random, uint64_t index, double cut) {
  for (uint32_t attempt = 0;; ++attempt) {
    const auto bits = random.draw(index, attempt);
    const double radius = sqrt(-2.0 * log((bits[0] + 0.5) * 0x1p-32));
    const double angle = 2.0 * 3.14159265358979323846 * (bits[1] + 0.5) * 0x1p-32;
    const double first = radius * cos(angle);
    if (fabs(first) <= cut) return first;
    const double second = radius * sin(angle);
    if (fabs(second) <= cut) return second;
  }
}

template <class T>
struct Draw {
  T* w;
  int64_t width;
  TruncatedNormal options;

  template <int n>
  __device__ void run(int64_t i) const {
    static_assert(n == 1);
    const int64_t row = options.row_begin + i / width;
    const int64_t column = options.column_begin + i % width;
    const auto index = static_cast<uint64_t>(row * options.global_columns + column);
    const double value = options.stddev * truncated_normal(options.random, index, options.cut);
    w[i] = round_to<T>(static_cast<Accumulator<T>>(value));
  }
};

}  // namespace

void CudaBackend::truncated_normal_impl(const Tensor& w, const TruncatedNormal& options) {
  dispatch_float(w.dtype, [&]<class T>() {
    const Draw<T> draw{w.as<T>(), w.shape.back(), options};
    // One element per thread: the logarithms cost more than the memory.
    launch(for_each_pack<1, Draw<T>>, one_thread_each(w.numel()), stream_, draw, w.numel());
  });
}

}  // namespace phalanx
