// The router of a mixture of experts: softmax and top-k, its two own losses, and their gradient.
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace phalanx {
namespace {

/// probabilities = softmax(logits), in place if they are the same; returns logsumexp.
template <class Acc>
Acc softmax_row(Acc* probabilities, const Acc* logits, int64_t experts) {
  Acc largest = logits[0];
  for (int64_t e = 1; e < experts; ++e) largest = std::max(largest, logits[e]);
  Acc sum{0};
#pragma omp simd reduction(+ : sum)
  for (int64_t e = 0; e < experts; ++e) {
    probabilities[e] = fast_exp(logits[e] - largest);
    sum += probabilities[e];
  }
  const Acc inverse = Acc{1} / sum;
  for (int64_t e = 0; e < experts; ++e) probabilities[e] *= inverse;
  return largest + std::log(sum);
}

/// The k largest, in the order (probability down, number up): each is the best after the last one
/// in that order. A row of NaN takes expert 0 k times, so that NaN reaches the loss, not an index.
template <class Acc>
void top_k_row(int32_t* chosen, Acc* weights, const Acc* p, int64_t experts, int64_t topk) {
  for (int64_t j = 0; j < topk; ++j) {
    int64_t best = -1;
    for (int64_t e = 0; e < experts; ++e) {
      const bool after =
          j == 0 || p[e] < weights[j - 1] || (p[e] == weights[j - 1] && e > chosen[j - 1]);
      if (after && (best < 0 ? !std::isnan(p[e]) : p[e] > p[best])) best = e;
    }
    chosen[j] = static_cast<int32_t>(std::max<int64_t>(best, 0));
    weights[j] = p[chosen[j]];
  }
}

}  // namespace

void CpuBackend::router_forward_impl(const RouterOutputs& outputs, const Tensor& logits) {
  dispatch_float(logits.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const int64_t experts = logits.shape.back();
    const int64_t topk = outputs.experts.shape.back();
    Acc* p = outputs.probabilities.as<Acc>();
    Acc* lse = outputs.logsumexp.as<Acc>();
    Acc* weights = outputs.weights.as<Acc>();
    auto* chosen = outputs.experts.as<int32_t>();
    const Acc* in = logits.as<Acc>();
    const auto rows = [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        lse[row] = softmax_row(p + row * experts, in + row * experts, experts);
        top_k_row(chosen + row * topk, weights + row * topk, p + row * experts, experts, topk);
      }
    };
    parallel_ranges(num_threads_, logits.shape.rows(), row_grain(experts * topk), rows);
  });
}

void CpuBackend::router_loss_impl(const Tensor& sums, const RouterOutputs& outputs,
                                  const RouterLossFactors& factors) {
  dispatch_float(outputs.probabilities.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const int64_t experts = outputs.probabilities.shape.back();
    const FixedParts parts(outputs.probabilities.shape.rows());
    auto* partial = workspace<double>(2 * parts.parts);
    const Acc* p = outputs.probabilities.as<Acc>();
    const Acc* lse = outputs.logsumexp.as<Acc>();
    const auto* counts = factors.counts.as<int64_t>();
    parallel_ranges(num_threads_, parts.parts, 1, [=](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        double balance = 0.0;
        double z = 0.0;
        for (int64_t row = parts.begin(part); row < parts.end(part); ++row) {
          for (int64_t e = 0; e < experts; ++e)
            balance += static_cast<double>(counts[e]) * p[row * experts + e];
          z += static_cast<double>(lse[row]) * lse[row];
        }
        partial[2 * part] = balance * factors.balance;
        partial[2 * part + 1] = z * factors.z;
      }
    });
    add_parts(sums.as<double>(), partial, parts.parts, 2);
  });
}

/// With g the gradient of the probabilities (balance * counts, plus dweights at the chosen ones):
/// dlogits = p * (g - <g, p>) + 2 z lse p.
void CpuBackend::router_backward_impl(const Tensor& dlogits, const Tensor& dweights,
                                      const RouterOutputs& outputs,
                                      const RouterLossFactors& factors) {
  dispatch_float(dlogits.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const int64_t experts = dlogits.shape.back();
    const int64_t topk = dweights.shape.back();
    Acc* out = dlogits.as<Acc>();
    const Acc* dw = dweights.as<Acc>();
    const Acc* p = outputs.probabilities.as<Acc>();
    const Acc* lse = outputs.logsumexp.as<Acc>();
    const auto* chosen = outputs.experts.as<int32_t>();
    const auto* counts = factors.counts.as<int64_t>();
    const auto balance = static_cast<Acc>(factors.balance);
    const auto z = static_cast<Acc>(2.0 * factors.z);
    const auto rows = [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        Acc* g = out + row * experts;
        const Acc* probability = p + row * experts;
        for (int64_t e = 0; e < experts; ++e) g[e] = balance * static_cast<Acc>(counts[e]);
        for (int64_t j = row * topk; j < (row + 1) * topk; ++j) g[chosen[j]] += dw[j];
        Acc mean{0};
        for (int64_t e = 0; e < experts; ++e) mean += g[e] * probability[e];
        for (int64_t e = 0; e < experts; ++e) g[e] = probability[e] * (g[e] - mean + z * lse[row]);
      }
    };
    parallel_ranges(num_threads_, dlogits.shape.rows(), row_grain(experts), rows);
  });
}

}  // namespace phalanx
