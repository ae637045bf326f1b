// The table of rotations, made once per run: apart from split_heads.cu, because the library's
// double cosine needs a stack frame.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/packs.h"

namespace phalanx {
namespace {

/// table [P, 2 half]: cos(p * base^(-i / half)), then sin.
struct RopeTable {
  float* table;
  int64_t half;
  double base;

  template <int n>
  __device__ void run(int64_t index) const {
    static_assert(n == 1);
    const int64_t position = index / half;
    const int64_t i = index % half;
    const double exponent = -static_cast<double>(i) / static_cast<double>(half);
    const double angle = static_cast<double>(position) * pow(base, exponent);
    table[position * 2 * half + i] = static_cast<float>(cos(angle));
    table[position * 2 * half + half + i] = static_cast<float>(sin(angle));
  }
};

}  // namespace

void CudaBackend::rope_table_impl(const Tensor& table, double base) {
  const RopeTable fill{table.as<float>(), table.shape[1] / 2, base};
  const int64_t angles = table.numel() / 2;
  launch(for_each_pack<1, RopeTable>, one_thread_each(angles), stream_, fill, angles);
}

}  // namespace phalanx
