// Grouped-query attention over PHD copies.
#include "core/model/attention.h"

#include <algorithm>
#include <cmath>

namespace phalanx {
namespace {

constexpr PartRange kAllParts{0, 3};   // q, k, v
constexpr PartRange kQueryPart{0, 1};  // q
constexpr PartRange kKeyParts{1, 2};   // k, v

/// Tensor-parallel ranks that hold the same key-value head: more than one where there are more
/// ranks than heads.
int key_replicas(const LayerContext& context) {
  const auto groups = static_cast<int>(context.config.query_groups());
  return std::max(1, context.parallel.tp.size() / groups);
}

int64_t heads_of(const ModelConfig& config, bool query) {
  return query ? config.num_attention_heads : config.query_groups();
}

}  // namespace

Attention::Attention(const LayerContext& context, QueryRows query_rows)
    : ops_(context.parallel.backend),
      tp_(context.parallel.tp),
      row_factor_(context.parallel.row_factor()),
      copies_(context.config.copies()),
      query_copies_(query_rows == QueryRows::last_copy ? 1 : context.config.copies()),
      key_replicas_(key_replicas(context)),
      local_groups_(context.config.query_groups() * key_replicas_ / context.parallel.tp.size()),
      heads_per_group_(context.config.num_attention_heads / context.parallel.tp.size() /
                       local_groups_),
      head_dim_(context.config.head_dim()),
      epsilon_(context.config.norm_epsilon),
      copy_position_(context.config.phd_rope_position),
      recompute_(context.recompute),
      context_attention_(ops_, context.cp, attention_mask(context.config, context.layer)),
      qkv_(context.parallel,
           {{context.name("attention.q.weight"), heads_of(context.config, true) * head_dim_},
            {context.name("attention.k.weight"), heads_of(context.config, false) * head_dim_,
             key_replicas_},
            {context.name("attention.v.weight"), heads_of(context.config, false) * head_dim_,
             key_replicas_}},
           {.in_features = context.config.hidden_size,
            .kind = ParameterKind::attention,
            .initialiser = {.stddev = base_init_std(context.config)}}),
      out_(context.parallel, context.name("attention.out.weight"),
           {.in_features = context.config.num_attention_heads * head_dim_,
            .out_features = context.config.hidden_size,
            .kind = ParameterKind::attention,
            .initialiser = {.stddev = output_init_std(context.config, context.layer)}}) {
  const NormPlacement norms = norm_placement(context.config, context.layer);
  q_ = make_head(context, Role::query, norms.q_norm);
  k_ = make_head(context, Role::key, norms.k_norm);
  v_ = make_head(context, Role::value, norms.v_norm);
  // q stands alone when only the last copy asks; k and v then share a projection of all copies.
  q_.column = 0;
  k_.column = query_copies_ == copies_ ? q_.local_width : 0;
  v_.column = k_.column + k_.local_width;
}

Attention::Head Attention::make_head(const LayerContext& context, Role role, HeadNorm norm) const {
  const int64_t heads = heads_of(context.config, role == Role::query);
  const int replicas = role == Role::query ? 1 : key_replicas_;
  Head result{.norm = norm,
              .replicas = replicas,
              .local_width = heads * replicas / tp_.size() * head_dim_,
              .global_width = heads * head_dim_};
  if (norm == HeadNorm::none) return result;
  const char* names[] = {"attention.q_norm.weight", "attention.k_norm.weight",
                         "attention.v_norm.weight"};
  ParameterSpec spec{.name = context.name(names[static_cast<int>(role)]),
                     .global_shape = {norm == HeadNorm::per_head ? head_dim_ : heads * head_dim_},
                     .kind = ParameterKind::norm};
  if (norm == HeadNorm::full_width) {
    spec.placement = Placement::sharded(MeshAxis::tp, 0);
    spec.placement.tp_replicas = replicas;
    result.weight =
        &context.parallel.parameters.add(spec, tp_.rank() / replicas, tp_.size() / replicas);
  } else {
    // Shared by all heads, of which this rank sees its own: the gradient is a part of the sum.
    spec.placement.partial_gradient.add(MeshAxis::tp);
    result.weight = &context.parallel.parameters.add(spec);
  }
  return result;
}

const Attention::Head& Attention::head(Role role) const {
  return role == Role::query ? q_ : role == Role::key ? k_ : v_;
}

// q_rows, kv_rows = x W^T before norms: one product, or two when only the last copy asks.
void Attention::project(const Tensor& x, Saved& saved, Memory& memory) const {
  const int64_t rows = x.shape.rows() * row_factor_;
  if (query_copies_ == copies_) {
    const int64_t width = qkv_.local_out_features(kAllParts);
    saved.kv_rows = memory.saved.tensor("attention.qkv", {rows, width}, x.dtype);
    saved.q_rows = saved.kv_rows;
    qkv_.forward(saved.kv_rows, x.as_matrix(), saved.qkv_linear, memory, kAllParts);
    return;
  }
  const Tensor last =
      memory.saved.tensor("attention.x_last", {x.shape[0], x.shape[1], x.shape.back()}, x.dtype);
  ops_.select_copy(last, x, copies_ - 1);
  saved.q_rows = memory.saved.tensor("attention.q_rows", {rows / copies_, q_.local_width}, x.dtype);
  saved.kv_rows =
      memory.saved.tensor("attention.kv_rows", {rows, qkv_.local_out_features(kKeyParts)}, x.dtype);
  qkv_.forward(saved.q_rows, last.as_matrix(), saved.query_linear, memory, kQueryPart);
  qkv_.forward(saved.kv_rows, x.as_matrix(), saved.qkv_linear, memory, kKeyParts);
}

SplitHeads Attention::split_options(Role role, const Saved& saved,
                                    const SequenceInputs& inputs) const {
  const Head& part = head(role);
  const bool query = role == Role::query;
  SplitHeads options{.layout = query ? HeadLayout::queries : HeadLayout::keys,
                     .copies = query ? query_copies_ : copies_,
                     .first_copy = query ? copies_ - query_copies_ : 0,
                     .total_copies = copies_,
                     .column = part.column,
                     .norm = part.norm,
                     .norm_width = part.global_width,
                     .epsilon = epsilon_,
                     .copy_position = copy_position_};
  if (part.weight != nullptr) options.weight = part.weight->value;
  if (part.norm == HeadNorm::full_width) options.row_sums = query ? saved.q_sums : saved.k_sums;
  if (role != Role::value) {
    options.rope_table = inputs.rope_table;
    options.position_ids = inputs.position_ids;
  }
  return options;
}

// sums = sum over tp, as if every head existed once. For the backward's dots that is right too:
// each replica has a part of dy, and the parts of dx that the replicas make are added up later, so
// each takes its share of the term that depends on the whole row.
void Attention::sum_over_heads(const Head& part, const Tensor& sums) const {
  tp_.all_reduce(sums, ReduceOp::sum);
  if (part.replicas > 1) ops_.scale(sums, 1.0 / part.replicas);
}

// Sum of squares of this projection's whole row, over tp (full-width norms only).
Tensor Attention::full_width_sums(const Head& part, const Tensor& rows, Memory& memory) const {
  if (part.norm != HeadNorm::full_width) return {};
  const Tensor sums =
      memory.saved.tensor("attention.row_sums", {rows.shape[0]}, accumulator_dtype(rows.dtype));
  ops_.row_sum_squares(sums, rows, part.column, part.local_width);
  sum_over_heads(part, sums);
  return sums;
}

AttentionInputs Attention::attention_inputs(const Saved& saved,
                                            const SequenceInputs& inputs) const {
  return {.q = saved.q,
          .k = saved.k,
          .v = saved.v,
          .document_start = inputs.document_start,
          .scale = 1.0 / std::sqrt(static_cast<double>(head_dim_)),
          .query_copies = query_copies_,
          .first_query_copy = copies_ - query_copies_};
}

// y = out(softmax(rope(norm(q)) rope(norm(k))^T / sqrt(D) + mask) norm(v))
void Attention::forward(const Tensor& y, const Tensor& x, Saved& saved, Memory& memory,
                        const SequenceInputs& inputs) const {
  project(x, saved, memory);
  saved.q_sums = full_width_sums(q_, saved.q_rows, memory);
  saved.k_sums = full_width_sums(k_, saved.kv_rows, memory);
  const ArenaScope scope(memory.scratch);
  Arena& arena = recompute_ == Recompute::attention ? memory.scratch : memory.saved;
  const Tensor out = attend(saved, {arena, arena}, memory.scratch, inputs);
  out_.forward(y.as_matrix(), out.as_matrix(), saved.out_linear, memory);
}

// What recomputation makes again: heads from the projections' rows, and attention.
Tensor Attention::attend(Saved& saved, const AttendArenas& arenas, Arena& scratch,
                         const SequenceInputs& inputs) const {
  Arena& arena = arenas.heads;
  const DType dtype = saved.q_rows.dtype;
  const int64_t s = inputs.positions;
  const int64_t b = inputs.sequences;
  const Shape queries{b, local_groups_, s, query_copies_ * heads_per_group_, head_dim_};
  const Shape keys{copies_, b, local_groups_, s, head_dim_};
  saved.q = arena.tensor("attention.q", queries, dtype);
  saved.k = arena.tensor("attention.k", keys, dtype);
  saved.v = arena.tensor("attention.v", keys, dtype);
  ops_.split_heads_forward(saved.q, saved.q_rows, split_options(Role::query, saved, inputs));
  ops_.split_heads_forward(saved.k, saved.kv_rows, split_options(Role::key, saved, inputs));
  ops_.split_heads_forward(saved.v, saved.kv_rows, split_options(Role::value, saved, inputs));

  saved.lse =
      arena.tensor("attention.lse", {b, local_groups_, s, queries[3]}, accumulator_dtype(dtype));
  const Tensor out =
      arenas.out.tensor("attention.out", {s, b, query_copies_, q_.local_width}, dtype);
  context_attention_.forward(out, saved.lse, attention_inputs(saved, inputs), scratch);
  return out;
}

// The columns of q, k or v in drows from the gradient of its heads.
void Attention::split_backward(Role role, const Tensor& drows, const Tensor& dheads,
                               const Saved& saved, Memory& memory, const SequenceInputs& inputs) {
  const SplitHeads options = split_options(role, saved, inputs);
  const Tensor& rows = role == Role::query ? saved.q_rows : saved.kv_rows;
  Tensor dots;
  if (options.norm == HeadNorm::full_width) {
    dots =
        memory.scratch.tensor("attention.row_dots", {rows.shape[0]}, accumulator_dtype(rows.dtype));
    ops_.split_heads_row_dots(dots, dheads, rows, options);
    sum_over_heads(options.layout == HeadLayout::queries ? q_ : k_, dots);
  }
  Parameter* weight = head(role).weight;
  ops_.split_heads_backward({.dx = drows,
                             .dweight = weight != nullptr ? weight->gradient : Tensor{},
                             .dy = dheads,
                             .x = rows,
                             .row_dots = dots},
                            options);
}

void Attention::backward(const Tensor& dx, const Tensor& dy, const Saved& kept, Memory& memory,
                         const SequenceInputs& inputs) {
  const ArenaScope scope(memory.scratch);
  Arena& scratch = memory.scratch;
  Saved saved = kept;
  if (recompute_ == Recompute::attention) {
    // The weight half of a split backward reads the output later than this scratch memory lives.
    Arena& out_arena = memory.deferred != nullptr ? memory.saved : scratch;
    saved.out_linear.x = attend(saved, {scratch, out_arena}, scratch, inputs).as_matrix();
  }
  const Tensor& out = saved.out_linear.x;
  const Tensor dout = scratch.tensor("attention.dout", out.shape, dy.dtype);
  out_.backward(dout, dy.as_matrix(), saved.out_linear, memory);

  const Tensor dq = scratch.tensor("attention.dq", saved.q.shape, dy.dtype);
  const Tensor dk = scratch.tensor("attention.dk", saved.k.shape, dy.dtype);
  const Tensor dv = scratch.tensor("attention.dv", saved.v.shape, dy.dtype);
  const Tensor delta = scratch.tensor("attention.delta", saved.lse.shape, saved.lse.dtype);
  const Shape rows{inputs.positions, inputs.sequences, query_copies_, q_.local_width};
  context_attention_.backward({.gradients = {dq, dk, dv},
                               .delta = delta,
                               .dout = dout.view(rows),
                               .out = out.view(rows),
                               .lse = saved.lse},
                              attention_inputs(saved, inputs), scratch);

  const Tensor dkv_rows = scratch.tensor("attention.dqkv", saved.kv_rows.shape, dy.dtype);
  split_backward(Role::key, dkv_rows, dk, saved, memory, inputs);
  split_backward(Role::value, dkv_rows, dv, saved, memory, inputs);
  if (query_copies_ == copies_) {
    split_backward(Role::query, dkv_rows, dq, saved, memory, inputs);
    qkv_.backward(dx.as_matrix(), dkv_rows, saved.qkv_linear, memory, kAllParts);
    return;
  }
  qkv_.backward(dx.as_matrix(), dkv_rows, saved.qkv_linear, memory, kKeyParts);
  const Tensor dq_rows = scratch.tensor("attention.dq_rows", saved.q_rows.shape, dy.dtype);
  split_backward(Role::query, dq_rows, dq, saved, memory, inputs);
  const Tensor dlast =
      scratch.tensor("attention.dx_last", {dx.shape[0], dx.shape[1], dx.shape.back()}, dy.dtype);
  qkv_.backward(dlast.as_matrix(), dq_rows, saved.query_linear, memory, kQueryPart);
  ops_.accumulate_copy(dx, dlast, copies_ - 1);
}

}  // namespace phalanx
