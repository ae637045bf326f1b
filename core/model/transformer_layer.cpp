// One transformer layer: two branches, four norm switches.
#include "core/model/transformer_layer.h"

namespace phalanx {
namespace {

std::optional<RmsNorm> make_norm(const LayerContext& context, bool wanted, const char* name,
                                 double weight = 1.0) {
  if (!wanted) return std::nullopt;
  return std::make_optional<RmsNorm>(context.parallel, context.name(name),
                                     RmsNorm::Init{.width = context.config.hidden_size,
                                                   .epsilon = context.config.norm_epsilon,
                                                   .weight = weight});
}

}  // namespace

TransformerLayer::TransformerLayer(const LayerContext& context, QueryRows query_rows)
    : ops_(context.parallel.backend),
      placement_(norm_placement(context.config, context.layer)),
      query_rows_(query_rows),
      copies_(context.config.copies()),
      first_parameter_(context.parallel.parameters.size()),
      attention_norm_(make_norm(context, placement_.attention_norm, "attention.norm.weight")),
      attention_(context, query_rows),
      attention_output_norm_(make_norm(context, placement_.attention_output_norm,
                                       "attention.output_norm.weight",
                                       placement_.attention_output_norm_weight)),
      feed_forward_norm_(make_norm(context, placement_.feed_forward_norm, "mlp.norm.weight")),
      feed_forward_(context.config.num_experts > 0
                        ? FeedForward(std::in_place_type<MoeLayer>, context)
                        : FeedForward(std::in_place_type<Mlp>, context)),
      feed_forward_output_norm_(
          make_norm(context, placement_.feed_forward_output_norm, "mlp.output_norm.weight")) {}

Shape TransformerLayer::output_shape(const Shape& x) const {
  return query_rows_ == QueryRows::last_copy ? x.with_dim(2, 1) : x;
}

// What the residual carries past attention: all copies, or the last one where only it goes on.
Tensor TransformerLayer::residual(const Tensor& carried, Memory& memory) const {
  if (query_rows_ == QueryRows::all_copies) return carried;
  const Tensor last =
      memory.scratch.tensor("layer.residual_last", output_shape(carried.shape), carried.dtype);
  ops_.select_copy(last.view({last.shape[0], last.shape[1], last.shape.back()}), carried,
                   copies_ - 1);
  return last;
}

// Returns the residual; `branch` becomes No(Attention(N(x))).
Tensor TransformerLayer::attention_part(const Tensor& x, Saved& saved, Memory& memory,
                                        const SequenceInputs& inputs, Tensor& branch) const {
  Tensor a = x;
  if (attention_norm_) {
    a = memory.saved.tensor("layer.attention_in", x.shape, x.dtype);
    attention_norm_->forward(a, x, saved.attention_norm, memory);
  }
  const Tensor raw = (attention_output_norm_ ? memory.saved : memory.scratch)
                         .tensor("layer.attention_out", output_shape(x.shape), x.dtype);
  attention_.forward(raw, a, saved.attention, memory, inputs);
  branch = raw;
  if (attention_output_norm_) {
    branch = memory.scratch.tensor("layer.attention_normed", raw.shape, x.dtype);
    attention_output_norm_->forward(branch, raw, saved.attention_output_norm, memory);
  }
  return residual(placement_.attention_residual_normed ? a : x, memory);
}

void TransformerLayer::forward(const Tensor& y, const Tensor& x, Saved& saved, Memory& memory,
                               const SequenceInputs& inputs) const {
  const ArenaScope scope(memory.scratch);
  Tensor branch;
  const Tensor carried = attention_part(x, saved, memory, inputs, branch);

  const Tensor sum = memory.saved.tensor("layer.middle", branch.shape, x.dtype);
  Tensor f = sum;
  if (feed_forward_norm_) {
    f = memory.saved.tensor("layer.mlp_in", sum.shape, x.dtype);
    feed_forward_norm_->add_forward(f, sum, carried, branch, saved.feed_forward_norm, memory);
  } else {
    ops_.add(sum, carried, branch);
  }
  const Tensor& carried_on = placement_.feed_forward_residual_normed ? f : sum;
  const Tensor raw = (feed_forward_output_norm_ ? memory.saved : memory.scratch)
                         .tensor("layer.mlp_out", sum.shape, x.dtype);
  if (const auto* mlp = std::get_if<Mlp>(&feed_forward_))
    mlp->forward(raw, f, saved.feed_forward.emplace<Mlp::Saved>(), memory);
  else
    std::get<MoeLayer>(feed_forward_)
        .forward(raw, f, saved.feed_forward.emplace<MoeLayer::Saved>(), memory, inputs.router_loss);
  if (!feed_forward_output_norm_) {
    ops_.add(y, carried_on, raw);
    return;
  }
  feed_forward_output_norm_->forward(y, raw, saved.feed_forward_output_norm, memory);
  ops_.add(y, y, carried_on);
}

// In place: dy becomes the gradient of `sum`, the middle of the layer.
void TransformerLayer::feed_forward_backward(const Tensor& dy, const Saved& saved, Memory& memory,
                                             const SequenceInputs& inputs) {
  const ArenaScope scope(memory.scratch);
  Tensor dbranch = dy;
  if (feed_forward_output_norm_) {
    dbranch = memory.scratch.tensor("layer.dmlp_out", dy.shape, dy.dtype);
    feed_forward_output_norm_->backward(dbranch, dy, saved.feed_forward_output_norm);
  }
  const Tensor df = memory.scratch.tensor("layer.dmlp_in", dy.shape, dy.dtype);
  if (auto* mlp = std::get_if<Mlp>(&feed_forward_))
    mlp->backward(df, dbranch, std::get<Mlp::Saved>(saved.feed_forward), memory);
  else
    std::get<MoeLayer>(feed_forward_)
        .backward(df, dbranch, std::get<MoeLayer::Saved>(saved.feed_forward), memory,
                  inputs.router_loss);
  if (!feed_forward_norm_) {
    ops_.add(dy, dy, df);
  } else if (placement_.feed_forward_residual_normed) {
    ops_.add(df, df, dy);
    feed_forward_norm_->backward(dy, df, saved.feed_forward_norm);
  } else {
    feed_forward_norm_->backward(dy, df, saved.feed_forward_norm, dy);
  }
}

// dx from dy, the gradient of the middle of the layer.
void TransformerLayer::attention_backward(const Tensor& dx, const Tensor& dy, const Saved& saved,
                                          Memory& memory, const SequenceInputs& inputs) {
  const ArenaScope scope(memory.scratch);
  Tensor dbranch = dy;
  if (attention_output_norm_) {
    dbranch = memory.scratch.tensor("layer.dattention_out", dy.shape, dy.dtype);
    attention_output_norm_->backward(dbranch, dy, saved.attention_output_norm);
  }
  attention_.backward(dx, dbranch, saved.attention, memory, inputs);

  const bool normed = placement_.attention_residual_normed || !attention_norm_;
  const auto add_residual = [&] {
    if (query_rows_ == QueryRows::all_copies) {
      ops_.add(dx, dx, dy);
    } else {
      ops_.accumulate_copy(dx, dy.view({dy.shape[0], dy.shape[1], dy.shape.back()}), copies_ - 1);
    }
  };
  if (normed) add_residual();
  if (!attention_norm_) return;
  const bool fused = !normed && query_rows_ == QueryRows::all_copies;
  attention_norm_->backward(dx, dx, saved.attention_norm, fused ? dy : Tensor{});
  if (!normed && !fused) add_residual();
}

void TransformerLayer::backward(const Tensor& dx, const Tensor& dy, const Saved& saved,
                                Memory& memory, const SequenceInputs& inputs) {
  feed_forward_backward(dy, saved, memory, inputs);
  attention_backward(dx, dy, saved, memory, inputs);
}

}  // namespace phalanx
