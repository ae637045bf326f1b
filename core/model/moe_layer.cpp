// The mixture-of-experts feed-forward; every backward reads as its forward from the last line up.
#include "core/model/moe_layer.h"

#include <fmt/format.h>

namespace phalanx {
namespace {

Parameter& add_router(const LayerContext& context) {
  const ModelConfig& config = context.config;
  return context.parallel.parameters.add({.name = context.name("mlp.router.weight"),
                                          .global_shape = {config.num_experts, config.hidden_size},
                                          .kind = ParameterKind::router,
                                          .placement = row_wise_placement(context.parallel),
                                          .initialiser = {.stddev = base_init_std(config)}});
}

struct ExpertMatrix {
  const char* name;
  Shape shape;  // global
  int8_t cut_dim;
  double stddev;
};

/// Registers one matrix of global expert `expert`. Its gradient is complete but for expert_dp: all
/// rows that choose it on the other ranks come here.
void add_expert_matrix(const LayerContext& context, int64_t expert, const ExpertMatrix& matrix) {
  Placement placement = Placement::sharded(MeshAxis::expert_tp, matrix.cut_dim);
  placement.partial_gradient = AxisSet{MeshAxis::expert_dp};
  const ProcessGroup& expert_tp = context.experts.expert_tp;
  context.parallel.parameters.add(
      {.name = context.name(fmt::format("mlp.experts.{:02d}.{}.weight", expert, matrix.name)),
       .global_shape = matrix.shape,
       .kind = ParameterKind::expert,
       .placement = placement,
       .initialiser = {.stddev = matrix.stddev}},
      expert_tp.rank(), expert_tp.size());
}

}  // namespace

MoeLayer::MoeLayer(const LayerContext& context)
    : ops_(context.parallel.backend),
      store_(context.parallel.parameters),
      tp_(context.parallel.tp),
      cp_(context.cp),
      num_experts_(context.config.num_experts),
      topk_(context.config.moe_router_topk),
      dispatcher_(ops_, context.experts, num_experts_),
      router_(&add_router(context)) {
  check_usage(tp_.size() == 1 || context.parallel.sequence_parallel == SequenceParallel::on,
              "experts need sequence-parallel where tensor-model-parallel-size is ", tp_.size(),
              "; add --sequence-parallel");
  const int64_t h = context.config.hidden_size;
  const int64_t f = context.config.moe_ffn_hidden_size;
  const double stddev = base_init_std(context.config);
  const int64_t begin = dispatcher_.first_expert();
  const int64_t end = begin + dispatcher_.local_experts();
  // All gates and ups, then all downs, so that the experts of each product are one block.
  first_gate_ = store_.size();
  for (int64_t e = begin; e < end; ++e) {
    add_expert_matrix(context, e, {"gate", {f, h}, 0, stddev});
    add_expert_matrix(context, e, {"up", {f, h}, 0, stddev});
  }
  first_down_ = store_.size();
  const double output_stddev = output_init_std(context.config, context.layer);
  for (int64_t e = begin; e < end; ++e)
    add_expert_matrix(context, e, {"down", {h, f}, 1, output_stddev});
}

// [E/ep, rows, columns] of adjacent matrices, as many of each expert.
Tensor MoeLayer::by_expert(const Tensor& matrices) const {
  const int64_t experts = dispatcher_.local_experts();
  return matrices.view({experts, matrices.shape[0] / experts, matrices.shape[1]});
}

Tensor MoeLayer::expert_values(int64_t first, int64_t per_expert) const {
  return by_expert(store_.fused_value(store_[first], dispatcher_.local_experts() * per_expert));
}

Tensor MoeLayer::expert_gradients(int64_t first, int64_t per_expert) const {
  return by_expert(store_.fused_gradient(store_[first], dispatcher_.local_experts() * per_expert));
}

// x in the accumulator's dtype: the router computes in it.
Tensor MoeLayer::as_accumulator(const Tensor& x, Arena& arena) const {
  const DType dtype = accumulator_dtype(x.dtype);
  if (x.dtype == dtype) return x;
  const Tensor wide = arena.tensor("router.wide", x.shape, dtype);
  ops_.copy(wide, x);
  return wide;
}

// Of the micro-batch's T rows: balance = E / (T k T) sum counts p, z = 1 / T sum lse^2.
RouterLossFactors MoeLayer::factors(const Saved& saved, double balance_scale,
                                    double z_scale) const {
  const auto rows = static_cast<double>(saved.x.shape.rows() * tp_.size() * cp_.size());
  const double per_choice = static_cast<double>(num_experts_) / static_cast<double>(topk_);
  return {.counts = saved.counts,
          .balance = balance_scale * per_choice / (rows * rows),
          .z = z_scale / rows};
}

// p = softmax(W_r x) and the chosen experts, with their rows counted over all ranks that share the
// micro-batch.
void MoeLayer::router_forward(Saved& saved, Memory& memory, const RouterLoss& loss) const {
  const ArenaScope scope(memory.scratch);
  const DType acc = accumulator_dtype(saved.x.dtype);
  const int64_t n = saved.x.shape.rows();
  // bf16 values multiply exactly in f32, so the mixed product is the f32 product.
  const Tensor logits = memory.saved.tensor("router.probabilities", {n, num_experts_}, acc);
  ops_.matmul(logits, saved.x, router_->value, kTimesTransposed);
  saved.router = {.probabilities = logits,
                  .logsumexp = memory.saved.tensor("router.logsumexp", {n}, acc),
                  .experts = memory.saved.tensor("router.experts", {n, topk_}, DType::i32),
                  .weights = memory.saved.tensor("router.weights", {n, topk_}, acc)};
  ops_.router_forward(saved.router, logits);

  saved.counts = memory.saved.tensor("router.counts", {num_experts_}, DType::i64);
  dispatcher_.route(saved.route, saved.counts, saved.router.experts, memory);
  tp_.all_reduce(saved.counts, ReduceOp::sum);
  cp_.all_reduce(saved.counts, ReduceOp::sum);
  if (loss.sums) ops_.router_loss(loss.sums, saved.router, factors(saved, 1.0, 1.0));
}

// The weight of a row multiplies its activation, not its result: that is the same, and d(weight)
// then needs no result kept.
void MoeLayer::forward(const Tensor& y, const Tensor& x, Saved& saved, Memory& memory,
                       const RouterLoss& loss) const {
  const ArenaScope scope(memory.scratch);
  saved.x = x.as_matrix();
  router_forward(saved, memory, loss);
  const Tensor gate_up = expert_values(first_gate_, 2);
  const Tensor down = expert_values(first_down_, 1);
  const int64_t m = saved.route.rows();
  const int64_t h = saved.x.shape.back();

  saved.rows = memory.saved.tensor("experts.rows", {m, h}, x.dtype);
  dispatcher_.dispatch(saved.rows, saved.x, saved.route, memory);
  saved.weights = memory.saved.tensor("experts.weights", {m, 1}, saved.router.weights.dtype);
  const Tensor choices = saved.router.weights.view({saved.router.weights.numel(), 1});
  dispatcher_.dispatch(saved.weights, choices, saved.route, memory);

  saved.gate_up = memory.saved.tensor("experts.gate_up", {m, gate_up.shape[1]}, x.dtype);
  ops_.grouped_matmul(saved.gate_up, saved.rows, gate_up,
                      {saved.route.expert_rows, kTimesTransposed});
  const Tensor act = memory.scratch.tensor("experts.act", {m, down.shape[2]}, x.dtype);
  ops_.swiglu_forward(act, saved.gate_up);
  ops_.scale_rows(act, act, saved.weights);
  const Tensor out = memory.scratch.tensor("experts.out", {m, h}, x.dtype);
  ops_.grouped_matmul(out, act, down, {saved.route.expert_rows, kTimesTransposed});
  dispatcher_.collect(y.as_matrix(), out, saved.route, memory);
}

// dW of all three matrices, now or with the deferred work; reads what lives in `memory.saved` then.
void MoeLayer::add_weight_gradients(const Tensor& dgate_up, const Tensor& dy, const Saved& saved,
                                    Memory& memory) {
  const auto work = [this, dgate_up, dy, rows = saved.rows, gate_up = saved.gate_up,
                     weights = saved.weights,
                     expert_rows = saved.route.expert_rows](Arena& scratch) {
    const ArenaScope scope(scratch);
    const Tensor ddown = expert_gradients(first_down_, 1);
    const Tensor act = scratch.tensor("experts.act", {dy.shape[0], ddown.shape[2]}, dy.dtype);
    ops_.swiglu_forward(act, gate_up);
    ops_.scale_rows(act, act, weights);
    ops_.grouped_matmul(ddown, dy, act, {expert_rows, kWeightGradient});
    ops_.grouped_matmul(expert_gradients(first_gate_, 2), dgate_up, rows,
                        {expert_rows, kWeightGradient});
  };
  if (memory.deferred == nullptr) return work(memory.scratch);
  memory.deferred->emplace_back(work);
}

// d(rows) [m, H] and d(weights) [m, 1], both partial over expert_tp, of dy [m, H].
void MoeLayer::experts_backward(const Tensor& drows, const Tensor& dweights, const Tensor& dy,
                                const Saved& saved, Memory& memory) {
  const ArenaScope scope(memory.scratch);
  const Tensor gate_up = expert_values(first_gate_, 2);
  const Tensor down = expert_values(first_down_, 1);
  Arena& kept = memory.deferred == nullptr ? memory.scratch : memory.saved;
  const Tensor dgate_up = kept.tensor("experts.dgate_up", saved.gate_up.shape, dy.dtype);
  {
    const ArenaScope inner(memory.scratch);
    const Shape act_shape{dy.shape[0], down.shape[2]};
    const Tensor dact = memory.scratch.tensor("experts.dact", act_shape, dy.dtype);
    ops_.grouped_matmul(dact, dy, down, {saved.route.expert_rows, kTimes});
    const Tensor act = memory.scratch.tensor("experts.act", act_shape, dy.dtype);
    ops_.swiglu_forward(act, saved.gate_up);
    ops_.row_dots(dweights, dact, act);
    ops_.scale_rows(dact, dact, saved.weights);
    ops_.swiglu_backward(dgate_up, dact, saved.gate_up);
  }
  ops_.grouped_matmul(drows, dgate_up, gate_up, {saved.route.expert_rows, kTimes});
  add_weight_gradients(dgate_up, dy, saved, memory);
}

// dW_r += dlogits^T x in the accumulator's dtype.
void MoeLayer::add_router_gradient(const Tensor& dlogits, const Saved& saved, Memory& memory) {
  const auto work = [this, dlogits, x = saved.x](Arena& scratch) {
    const ArenaScope scope(scratch);
    ops_.matmul(router_->gradient, dlogits, as_accumulator(x, scratch), kWeightGradient);
  };
  if (memory.deferred == nullptr) return work(memory.scratch);
  memory.deferred->emplace_back(work);
}

void MoeLayer::backward(const Tensor& dx, const Tensor& dy, const Saved& saved, Memory& memory,
                        const RouterLoss& loss) {
  const ArenaScope scope(memory.scratch);
  Arena& kept = memory.deferred == nullptr ? memory.scratch : memory.saved;
  const DType acc = accumulator_dtype(dy.dtype);
  const Tensor dlogits = kept.tensor("router.dlogits", saved.router.probabilities.shape, acc);
  const Tensor drows = memory.scratch.tensor("experts.drows", saved.rows.shape, dy.dtype);
  const Tensor dweights = memory.scratch.tensor("router.dweights", saved.router.weights.shape, acc);
  {
    const ArenaScope inner(memory.scratch);
    const Tensor dout = kept.tensor("experts.dout", saved.rows.shape, dy.dtype);
    dispatcher_.dispatch(dout, dy.as_matrix(), saved.route, memory);
    const Tensor darrived = memory.scratch.tensor("experts.dweights", saved.weights.shape, acc);
    experts_backward(drows, darrived, dout, saved, memory);
    dispatcher_.collect(dweights.view({dweights.numel(), 1}), darrived, saved.route, memory);
  }
  ops_.router_backward(dlogits, dweights, saved.router,
                       factors(saved, loss.balance_scale, loss.z_scale));
  add_router_gradient(dlogits, saved, memory);
  const Tensor through_router = memory.scratch.tensor("router.dx", saved.x.shape, acc);
  ops_.matmul(through_router, dlogits, as_accumulator(router_->value, memory.scratch), kTimes);
  dispatcher_.collect(dx.as_matrix(), drows, saved.route, memory, through_router);
}

}  // namespace phalanx
