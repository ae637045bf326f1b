// SwiGLU: act = silu(gate) * up with silu(g) = g * sigmoid(g) (Shazeer 2020, eq. 6).
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/packs.h"

namespace phalanx {
namespace {

/// act [rows, width] from gate | up [rows, 2 width].
template <class T>
struct SwiGluForward {
  using Acc = Accumulator<T>;
  T* act;
  const T* gate_up;
  int64_t width;

  template <int n>
  __device__ void run(int64_t i) const {
    const int64_t at = i / width * width + i;  // row * 2 width + column
    Acc gates[n];
    Acc ups[n];
    load<n>(gates, gate_up + at);
    load<n>(ups, gate_up + at + width);
#pragma unroll
    for (int j = 0; j < n; ++j) gates[j] = gates[j] / (Acc{1} + exp(-gates[j])) * ups[j];
    store<n>(act + i, gates);
  }
};

/// With s = sigmoid(gate): d up = dact * gate * s, d gate = dact * up * s * (1 + gate * (1 - s)).
/// dgate_up may be gate_up: a thread reads both of its elements before it writes them.
template <class T>
struct SwiGluBackward {
  using Acc = Accumulator<T>;
  T* dgate_up;
  const T* dact;
  const T* gate_up;
  int64_t width;

  template <int n>
  __device__ void run(int64_t i) const {
    const int64_t at = i / width * width + i;  // row * 2 width + column
    Acc gates[n];
    Acc ups[n];
    Acc gradients[n];
    load<n>(gates, gate_up + at);
    load<n>(ups, gate_up + at + width);
    load<n>(gradients, dact + i);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const Acc gate = gates[j];
      const Acc sigmoid = Acc{1} / (Acc{1} + exp(-gate));
      gates[j] = gradients[j] * ups[j] * sigmoid * (Acc{1} + gate * (Acc{1} - sigmoid));
      ups[j] = gradients[j] * gate * sigmoid;
    }
    store<n>(dgate_up + at, gates);
    store<n>(dgate_up + at + width, ups);
  }
};

}  // namespace

void CudaBackend::swiglu_forward_impl(const Tensor& act, const Tensor& gate_up) {
  dispatch_float(act.dtype, [&]<class T>() {
    const int64_t width = act.shape.back();
    const SwiGluForward<T> forward{act.as<T>(), gate_up.as<T>(), width};
    const bool in_packs = width % kPack<T> == 0 && starts_packs({act.data, gate_up.data});
    launch_packs<T>(forward, act.numel(), in_packs, stream_);
  });
}

void CudaBackend::swiglu_backward_impl(const Tensor& dgate_up, const Tensor& dact,
                                       const Tensor& gate_up) {
  dispatch_float(dact.dtype, [&]<class T>() {
    const int64_t width = dact.shape.back();
    const SwiGluBackward<T> backward{dgate_up.as<T>(), dact.as<T>(), gate_up.as<T>(), width};
    const bool in_packs =
        width % kPack<T> == 0 && starts_packs({dgate_up.data, dact.data, gate_up.data});
    launch_packs<T>(backward, dact.numel(), in_packs, stream_);
  });
}

}  // namespace phalanx
