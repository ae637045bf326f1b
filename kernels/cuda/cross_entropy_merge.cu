// Softmax statistics of a row whose columns are cut over ranks: a thread per row.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

namespace phalanx {
namespace {

/// max = max_r max_r; sum = sum_r sum_r exp(max_r - max); the target's logit is 0 on all ranks but
/// its own. In the order of the ranks, in f64. stats [rows, 3], parts [ranks, rows, 3].
template <class T>
__global__ void merge_kernel(T* stats, const T* parts, int64_t ranks, int64_t rows) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  double largest = static_cast<double>(parts[row * 3]);
  for (int64_t rank = 1; rank < ranks; ++rank)
    largest = fmax(largest, static_cast<double>(parts[(rank * rows + row) * 3]));
  double sum = 0.0;
  double target = 0.0;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const T* part = parts + (rank * rows + row) * 3;
    sum += static_cast<double>(part[1]) * exp(static_cast<double>(part[0]) - largest);
    target += static_cast<double>(part[2]);
  }
  stats[row * 3] = static_cast<T>(largest);
  stats[row * 3 + 1] = static_cast<T>(sum);
  stats[row * 3 + 2] = static_cast<T>(target);
}

}  // namespace

void CudaBackend::cross_entropy_merge_impl(const Tensor& stats, const Tensor& parts) {
  const int64_t rows = parts.shape[1];
  const auto run = [&]<class T>() {
    launch(merge_kernel<T>, one_thread_each(rows), stream_, stats.as<T>(), parts.as<T>(),
           parts.shape[0], rows);
  };
  if (stats.dtype == DType::f64) {  // statistics are never bf16
    run.operator()<double>();
  } else {
    run.operator()<float>();
  }
}

}  // namespace phalanx
