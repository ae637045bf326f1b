// AdamW on this rank's shards, the gradient norm, and the gathering of updated weights.
#include "parallel/distributed_optimizer.h"

#include <algorithm>
#include <cmath>

namespace phalanx {

Piece piece_of(const OptimizerShard& shard) {
  return piece_of(*shard.parameter, shard.row_begin, shard.row_end);
}

std::vector<Piece> pieces_of(const std::vector<OptimizerShard>& shards) {
  std::vector<Piece> pieces;
  for (const OptimizerShard& shard : shards) pieces.push_back(piece_of(shard));
  return pieces;
}

DistributedOptimizer::DistributedOptimizer(ParameterStore& store, GradientBuffer& gradients,
                                           Backend& backend, const ProcessGroups& groups,
                                           const OptimizerConfig& config)
    : store_(store),
      gradients_(gradients),
      ops_(backend),
      groups_(groups),
      config_(config),
      masters_are_weights_(store.dtype() == accumulator_dtype(store.dtype())) {
  const size_t num_buckets = gradients_.buckets().size();
  for (size_t i = 0; i < num_buckets; ++i) {
    const auto [begin, end] = gradients_.shard_range(i);
    state_numel_ += end - begin;
  }
  allocate_state();
  int64_t state_begin = 0;
  for (size_t i = 0; i < num_buckets; ++i) {
    add_shards(i, state_begin);
    const auto [begin, end] = gradients_.shard_range(i);
    state_begin += end - begin;
  }
}

void DistributedOptimizer::allocate_state() {
  const DType dtype = accumulator_dtype(store_.dtype());
  const auto take = [&](int64_t numel, DType element) {
    blocks_.push_back(ops_.allocate(numel * dtype_bytes(element)));
    return Tensor{blocks_.back().get(), {numel}, element, ops_.device()};
  };
  exp_avg_ = take(state_numel_, dtype);
  exp_avg_sq_ = take(state_numel_, dtype);
  if (!masters_are_weights_) master_ = take(state_numel_, dtype);
  squares_ = take(1, DType::f64);
}

AdamWTensors DistributedOptimizer::tensors_of(size_t bucket, int64_t state_begin, int64_t first,
                                              int64_t last) const {
  const auto state = [&](const Tensor& block) {
    return block.slice(state_begin + first, state_begin + last);
  };
  const Tensor weights = gradients_.value_shard(bucket).slice(first, last);
  return {.parameter = masters_are_weights_ ? Tensor{} : weights,
          .master = masters_are_weights_ ? weights : state(master_),
          .exp_avg = state(exp_avg_),
          .exp_avg_sq = state(exp_avg_sq_),
          .gradient = gradients_.gradient_shard(bucket).slice(first, last)};
}

// Elements count from the begin of this rank's shard of the bucket.
void DistributedOptimizer::add_shards(size_t index, int64_t state_begin) {
  const Bucket& bucket = gradients_.buckets()[index];
  const auto [begin, end] = gradients_.shard_range(index);
  int64_t span_begin = 0;
  for (int64_t i = bucket.first_parameter; i < bucket.last_parameter; ++i) {
    const Parameter& parameter = store_[i];
    const int64_t first = std::max(begin, parameter.flat_offset);
    const int64_t last = std::min(end, parameter.flat_offset + parameter.numel());
    if (first >= last) continue;
    const int64_t columns = parameter.matrix_shape()[1];
    const Shape shape{(last - first) / columns, columns};
    const AdamWTensors own = tensors_of(index, state_begin, first - begin, last - begin);
    shards_.push_back({.parameter = &parameter,
                       .row_begin = (first - parameter.flat_offset) / columns,
                       .row_end = (last - parameter.flat_offset) / columns,
                       .weights = (masters_are_weights_ ? own.master : own.parameter).view(shape),
                       .gradient = own.gradient.view(shape),
                       .master = own.master.view(shape),
                       .exp_avg = own.exp_avg.view(shape),
                       .exp_avg_sq = own.exp_avg_sq.view(shape)});
    Span span{.tensors = own,
              .weight_decay = weight_decay_of(parameter.spec.kind),
              .counted = counts_in_norm(parameter)};
    // What is updated and counted like its neighbour before goes through the ops with it.
    const bool joins = first > begin && spans_.back().counted == span.counted &&
                       spans_.back().weight_decay == span.weight_decay;
    if (joins) {
      spans_.pop_back();
      span.tensors = tensors_of(index, state_begin, span_begin, last - begin);
    } else {
      span_begin = first - begin;
    }
    spans_.push_back(span);
  }
}

double DistributedOptimizer::weight_decay_of(ParameterKind kind) const {
  if (kind == ParameterKind::norm && !config_.decay_norm_and_bias) return 0.0;
  if (kind == ParameterKind::embedding && !config_.decay_embedding) return 0.0;
  return config_.weight_decay;
}

// Over dp and cp (experts: expert_dp) the shards are disjoint, and every expert is on one ep rank.
// Of a piece that several tp ranks or both ends of the pipeline hold, the first counts it.
bool DistributedOptimizer::counts_in_norm(const Parameter& parameter) const {
  const Placement& placement = parameter.spec.placement;
  if (placement.is_expert()) return true;
  if (placement.is_shared_by_stages() && groups_.pp->rank() != 0) return false;
  const bool cut = placement.dim(MeshAxis::tp) != Placement::kReplicate;
  return groups_.tp->rank() % (cut ? placement.tp_replicas : groups_.tp->size()) == 0;
}

void DistributedOptimizer::copy_masters_from_parameters() {
  if (masters_are_weights_) return;
  for (const Span& span : spans_) ops_.copy(span.tensors.master, span.tensors.parameter);
}

void DistributedOptimizer::copy_parameters_from_masters() {
  if (masters_are_weights_) return;
  for (const Span& span : spans_) ops_.copy(span.tensors.parameter, span.tensors.master);
}

void DistributedOptimizer::initialise(uint64_t seed) {
  for (const OptimizerShard& shard : shards_)
    initialise_rows(ops_, *shard.parameter, shard.row_begin, shard.master, seed);
  copy_parameters_from_masters();
  gradients_.gather_weights();
}

double DistributedOptimizer::gradient_norm() {
  ops_.zero(squares_);
  for (const Span& span : spans_)
    if (span.counted) ops_.add_sum_squares(squares_, span.tensors.gradient);
  double squares = 0.0;
  ops_.download(&squares, squares_);
  return std::sqrt(groups_.world->all_reduce(squares, ReduceOp::sum));
}

void DistributedOptimizer::step(double learning_rate, double gradient_scale) {
  ++num_steps_;
  for (const Span& span : spans_)
    ops_.adamw_step(span.tensors, {.learning_rate = learning_rate,
                                   .beta1 = config_.adam_beta1,
                                   .beta2 = config_.adam_beta2,
                                   .epsilon = config_.adam_eps,
                                   .weight_decay = span.weight_decay,
                                   .gradient_scale = gradient_scale,
                                   .step = num_steps_});
}

int64_t DistributedOptimizer::state_bytes() const {
  const int64_t master_bytes = masters_are_weights_ ? 0 : master_.bytes();
  return master_bytes + exp_avg_.bytes() + exp_avg_sq_.bytes();
}

double clip_factor(double norm, double clip) {
  return clip > 0.0 && norm > clip ? clip / norm : 1.0;
}

}  // namespace phalanx
