// MoeLayer: the mixture-of-experts feed-forward. Softmax over all experts, then the top k without
// renormalising (Muennighoff et al. 2024, OLMoE, section 2), no expert capacity: nothing is
// dropped.
#pragma once

#include "core/model/layer_context.h"
#include "kernels/base/arena.h"
#include "parallel/expert_parallel.h"

namespace phalanx {

/// y = sum over the top k experts e of p_e down_e(silu(gate_e x) * up_e x), p = softmax(W_r x).
/// Row-wise: any number of rows, whatever copies they are; every rank has rows of its own (tp only
/// with sequence parallel).
class MoeLayer {
 public:
  struct Saved {
    Tensor x;              // [n, H] as handed in
    RouterOutputs router;  // [n, E], [n], [n, k], [n, k]
    Tensor counts;         // [E] i64: choices of each expert over tp and cp
    ExpertDispatcher::Route route;
    Tensor rows;     // [m, H]: what this rank's experts read, sorted by expert
    Tensor weights;  // [m] acc: the router's weight of each of these rows
    Tensor gate_up;  // [m, 2F/expert_tp]
  };
  explicit MoeLayer(const LayerContext& context);

  /// y, x [n, H].
  void forward(const Tensor& y, const Tensor& x, Saved& saved, Memory& memory,
               const RouterLoss& loss) const;
  void backward(const Tensor& dx, const Tensor& dy, const Saved& saved, Memory& memory,
                const RouterLoss& loss);

 private:
  Tensor as_accumulator(const Tensor& x, Arena& arena) const;
  RouterLossFactors factors(const Saved& saved, double balance_scale, double z_scale) const;
  void router_forward(Saved& saved, Memory& memory, const RouterLoss& loss) const;
  void experts_backward(const Tensor& drows, const Tensor& dweights, const Tensor& dy,
                        const Saved& saved, Memory& memory);
  void add_weight_gradients(const Tensor& dgate_up, const Tensor& dy, const Saved& saved,
                            Memory& memory);
  void add_router_gradient(const Tensor& dlogits, const Saved& saved, Memory& memory);
  Tensor by_expert(const Tensor& matrices) const;
  Tensor expert_values(int64_t first, int64_t per_expert) const;
  Tensor expert_gradients(int64_t first, int64_t per_expert) const;

  Backend& ops_;
  ParameterStore& store_;
  ProcessGroup& tp_;
  ProcessGroup& cp_;
  int64_t num_experts_;
  int64_t topk_;
  ExpertDispatcher dispatcher_;
  Parameter* router_;
  int64_t first_gate_;  // in the store: gate, up, gate, up, ... of the local experts
  int64_t first_down_;  // then down, down, ...
};

}  // namespace phalanx
