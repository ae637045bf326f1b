// The router of a mixture of experts: softmax and top-k, its two own losses, and their gradient.
// One warp per row; lane l holds experts l, l + 32, ...
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/row_sums.h"

namespace phalanx {
namespace {

/// RouterOutputs as pointers; the losses need no `chosen` and no `weights`.
template <class Acc>
struct RouterRows {
  Acc* probabilities;
  Acc* logsumexp;
  int32_t* chosen;
  Acc* weights;
  int64_t rows, experts, topk;

  explicit RouterRows(const RouterOutputs& outputs)
      : probabilities(outputs.probabilities.as<Acc>()),
        logsumexp(outputs.logsumexp.as<Acc>()),
        chosen(outputs.experts ? outputs.experts.as<int32_t>() : nullptr),
        weights(outputs.weights ? outputs.weights.as<Acc>() : nullptr),
        rows(outputs.probabilities.shape.rows()),
        experts(outputs.probabilities.shape.back()),
        topk(outputs.experts.shape.back()) {}
};

/// probabilities = softmax(logits), in place if they are the same; returns logsumexp.
template <class Acc>
__device__ Acc softmax_row(Acc* probabilities, const Acc* logits, int64_t experts) {
  const int64_t lane = threadIdx.x;
  Acc largest = -static_cast<Acc>(INFINITY);
  for (int64_t e = lane; e < experts; e += kWarp)
    largest = logits[e] > largest ? logits[e] : largest;
  largest = warp_max(largest);
  Acc sum{0};
  for (int64_t e = lane; e < experts; e += kWarp) {
    probabilities[e] = exp(logits[e] - largest);
    sum += probabilities[e];
  }
  sum = warp_sum(sum);
  const Acc inverse = Acc{1} / sum;
  for (int64_t e = lane; e < experts; e += kWarp) probabilities[e] *= inverse;
  return largest + log(sum);
}

/// An expert and its probability; number -1: none.
template <class Acc>
struct Choice {
  Acc probability;
  int expert;

  /// In the order (probability down, number up); NaN stands nowhere in it.
  __device__ bool before(const Choice& other) const {
    if (expert < 0 || other.expert < 0) return other.expert < 0 && expert >= 0;
    return probability > other.probability ||
           (probability == other.probability && expert < other.expert);
  }
};

/// The first of the warp's choices, on all lanes.
template <class Acc>
__device__ Choice<Acc> warp_first(Choice<Acc> mine) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const Choice<Acc> other{__shfl_xor_sync(kAllLanes, mine.probability, offset),
                            __shfl_xor_sync(kAllLanes, mine.expert, offset)};
    if (other.before(mine)) mine = other;
  }
  return mine;
}

/// The k largest in order: each is the first after the last one. A row of NaN takes expert 0 k
/// times, so that NaN reaches the loss, not an index.
template <class Acc>
__device__ void top_k_row(int32_t* chosen, Acc* weights, const Acc* p, int64_t experts,
                          int64_t topk) {
  const int64_t lane = threadIdx.x;
  Choice<Acc> last{Acc{0}, -1};
  for (int64_t j = 0; j < topk; ++j) {
    Choice<Acc> best{Acc{0}, -1};
    for (int64_t e = lane; e < experts; e += kWarp) {
      const Choice<Acc> candidate{p[e], static_cast<int>(e)};
      const bool number = candidate.probability == candidate.probability;
      const bool after = j == 0 || last.before(candidate);
      if (number && after && candidate.before(best)) best = candidate;
    }
    best = warp_first(best);
    last = {p[best.expert < 0 ? 0 : best.expert], best.expert < 0 ? 0 : best.expert};
    if (lane != 0) continue;
    chosen[j] = last.expert;
    weights[j] = last.probability;
  }
}

/// `logits` may be the probabilities.
template <class Acc>
__global__ void router_forward_kernel(RouterRows<Acc> of, const Acc* logits) {
  const int64_t row = own_row();
  if (row >= of.rows) return;
  Acc* p = of.probabilities + row * of.experts;
  const Acc logsumexp = softmax_row(p, logits + row * of.experts, of.experts);
  if (threadIdx.x == 0) of.logsumexp[row] = logsumexp;
  __syncwarp();  // the top k read what other lanes wrote
  top_k_row(of.chosen + row * of.topk, of.weights + row * of.topk, p, of.experts, of.topk);
}

/// What the losses of a row are made of.
struct RouterFactors {
  const int64_t* counts;
  double balance, z;
};

constexpr int kLossWarps = 8;

/// partial[block] = {balance loss, z loss} of the block's rows: a warp takes a row at a time.
template <class Acc>
__global__ void router_loss_kernel(double* partial, RouterRows<Acc> of, RouterFactors factors) {
  __shared__ double scratch[kWarp];
  const int64_t lane = threadIdx.x % kWarp;
  double balance = 0.0;
  double z = 0.0;
  for (int64_t row = int64_t{blockIdx.x} * kLossWarps + threadIdx.x / kWarp; row < of.rows;
       row += int64_t{gridDim.x} * kLossWarps) {
    const Acc* p = of.probabilities + row * of.experts;
    for (int64_t e = lane; e < of.experts; e += kWarp)
      balance += static_cast<double>(factors.counts[e]) * static_cast<double>(p[e]);
    const auto logsumexp = static_cast<double>(of.logsumexp[row]);
    if (lane == 0) z += logsumexp * logsumexp;
  }
  balance = block_sum(balance, scratch);
  z = block_sum(z, scratch);
  if (threadIdx.x != 0) return;
  partial[int64_t{2} * blockIdx.x] = balance * factors.balance;
  partial[int64_t{2} * blockIdx.x + 1] = z * factors.z;
}

/// With g the gradient of the probabilities (balance * counts, plus dweights at the chosen ones):
/// dlogits = p * (g - <g, p>) + 2 z lse p.
template <class Acc>
__global__ void router_backward_kernel(Acc* dlogits, const Acc* dweights, RouterRows<Acc> of,
                                       RouterFactors factors) {
  const int64_t row = own_row();
  if (row >= of.rows) return;
  const int64_t lane = threadIdx.x;
  const Acc* p = of.probabilities + row * of.experts;
  Acc* out = dlogits + row * of.experts;
  Acc mean{0};
  for (int64_t e = lane; e < of.experts; e += kWarp) {
    Acc g = static_cast<Acc>(factors.balance) * static_cast<Acc>(factors.counts[e]);
    for (int64_t j = row * of.topk; j < (row + 1) * of.topk; ++j)
      if (of.chosen[j] == e) g += dweights[j];
    out[e] = g;
    mean += g * p[e];
  }
  mean = warp_sum(mean);
  const Acc z = static_cast<Acc>(2.0 * factors.z) * of.logsumexp[row];
  for (int64_t e = lane; e < of.experts; e += kWarp) out[e] = p[e] * (out[e] - mean + z);
}

/// The router's ops know no bfloat16: calls body with float or double.
template <class Body>
void dispatch_router(DType dtype, Body&& body) {
  dispatch_float(dtype, [&]<class T>() { body.template operator()<Accumulator<T>>(); });
}

RouterFactors router_factors(const RouterLossFactors& factors) {
  return {.counts = factors.counts.as<int64_t>(), .balance = factors.balance, .z = factors.z};
}

}  // namespace

void CudaBackend::router_forward_impl(const RouterOutputs& outputs, const Tensor& logits) {
  dispatch_router(logits.dtype, [&]<class Acc>() {
    launch(router_forward_kernel<Acc>, row_shape(logits.shape.rows(), kWarp), stream_,
           RouterRows<Acc>(outputs), logits.as<Acc>());
  });
}

void CudaBackend::router_loss_impl(const Tensor& sums, const RouterOutputs& outputs,
                                   const RouterLossFactors& factors) {
  // A number of parts that depends on the rows alone gives the same bits on any GPU.
  constexpr int64_t kRowsPerPart = 4 * kLossWarps, kMostParts = 1024;
  const int64_t rows = outputs.probabilities.shape.rows();
  const int64_t parts = std::min((rows + kRowsPerPart - 1) / kRowsPerPart, kMostParts);
  if (parts == 0) return;
  auto* partial = static_cast<double*>(workspace(2 * parts * int64_t{sizeof(double)}));
  dispatch_router(outputs.probabilities.dtype, [&]<class Acc>() {
    constexpr int kThreads = kLossWarps * kWarp;
    launch(router_loss_kernel<Acc>, one_thread_each(parts * kThreads, kThreads), stream_, partial,
           RouterRows<Acc>(outputs), router_factors(factors));
  });
  launch_add_parts(sums.as<double>(), partial, parts, 2, stream_);
}

void CudaBackend::router_backward_impl(const Tensor& dlogits, const Tensor& dweights,
                                       const RouterOutputs& outputs,
                                       const RouterLossFactors& factors) {
  dispatch_router(dlogits.dtype, [&]<class Acc>() {
    launch(router_backward_kernel<Acc>, row_shape(dlogits.shape.rows(), kWarp), stream_,
           dlogits.as<Acc>(), dweights.as<Acc>(), RouterRows<Acc>(outputs),
           router_factors(factors));
  });
}

}  // namespace phalanx
