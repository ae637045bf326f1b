// SwiGLU: act = silu(gate) * up with silu(g) = g * sigmoid(g) (Shazeer 2020, eq. 6).
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace phalanx {

void CpuBackend::swiglu_forward_impl(const Tensor& act, const Tensor& gate_up) {
  dispatch_float(act.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const int64_t width = act.shape.back();
    T* out = act.as<T>();
    const T* in = gate_up.as<T>();
    const auto rows = [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* gates = in + row * 2 * width;
        const T* ups = gates + width;
        T* y = out + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
          const auto gate = static_cast<Acc>(gates[i]);
          y[i] = gate / (Acc{1} + fast_exp(-gate)) * static_cast<Acc>(ups[i]);
        }
      }
    };
    parallel_ranges(num_threads_, act.shape.rows(), row_grain(width), rows);
  });
}

/// With s = sigmoid(gate): d up = dact * gate * s, d gate = dact * up * s * (1 + gate * (1 - s)).
void CpuBackend::swiglu_backward_impl(const Tensor& dgate_up, const Tensor& dact,
                                      const Tensor& gate_up) {
  dispatch_float(dact.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const int64_t width = dact.shape.back();
    T* out = dgate_up.as<T>();
    const T* in = gate_up.as<T>();
    const T* dy = dact.as<T>();
    const auto rows = [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = in + row * 2 * width;
        T* dx = out + row * 2 * width;
        const T* d = dy + row * width;
#pragma omp simd  // dx may be x: each i reads both of its elements before it writes them
        for (int64_t i = 0; i < width; ++i) {
          const auto gate = static_cast<Acc>(x[i]);
          const auto up = static_cast<Acc>(x[width + i]);
          const auto gradient = static_cast<Acc>(d[i]);
          const Acc sigmoid = Acc{1} / (Acc{1} + fast_exp(-gate));
          dx[i] = gradient * up * sigmoid * (Acc{1} + gate * (Acc{1} - sigmoid));
          dx[width + i] = gradient * gate * sigmoid;
        }
      }
    };
    parallel_ranges(num_threads_, dact.shape.rows(), row_grain(width), rows);
  });
}

}  // namespace phalanx
