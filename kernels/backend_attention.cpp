// The public ops around attention: checks of rotary tables, heads, attention itself and the parts
// it is put together from.
#include "kernels/backend.h"
#include "kernels/head_rows.h"
#include "kernels/op_scope.h"

namespace phalanx {
namespace {

/// `heads` is the tensor in options.layout, `rows` the matrix [S*B*copies, width].
void check_heads(const OpScope& scope, const Tensor& heads, const Tensor& rows,
                 const SplitHeads& options) {
  scope.floating("heads", heads);
  scope.rank("heads", heads, 5);
  scope.typed("rows", rows, heads.dtype);
  const DType acc = accumulator_dtype(heads.dtype);
  const bool queries = options.layout == HeadLayout::queries;
  const int64_t copies_dim = heads.shape[queries ? 3 : 0];
  scope.require(options.copies >= 1 && copies_dim % options.copies == 0 &&
                    (queries || copies_dim == options.copies),
                "heads", heads, "must hold copies = ", options.copies,
                queries ? " in [B, G, S, K*R, D]" : " in [K, B, G, S, D]");
  scope.require(
      0 <= options.first_copy && options.first_copy + options.copies <= options.total_copies,
      "heads", heads, "holds copies ", options.first_copy, " to ",
      options.first_copy + options.copies - 1, " of ", options.total_copies);
  const HeadRows map(heads.shape, options);
  scope.require(rows.shape.rows() == map.num_rows(), "rows", rows, "must have ", map.num_rows(),
                " rows (S*B*copies)");
  scope.require(
      0 <= options.column && options.column + map.heads() * map.head_dim <= rows.shape.back(),
      "rows", rows, "has no ", map.heads() * map.head_dim, " columns from ", options.column);
  if (options.rope_table) {
    scope.typed("rope_table", options.rope_table, DType::f32);
    scope.require(options.rope_table.shape.back() == map.head_dim && map.head_dim % 2 == 0,
                  "rope_table", options.rope_table, "must be [positions, ", map.head_dim,
                  "] with an even head dim");
  }
  if (options.rope_table && options.position_ids) {
    scope.elements("position_ids", options.position_ids, map.positions * map.sequences, DType::i32);
  } else if (options.rope_table) {
    const int64_t per_position =
        options.copy_position == CopyPosition::flattened ? options.total_copies : 1;
    const int64_t needed = (options.first_position + map.positions) * per_position;
    scope.require(options.first_position >= 0 && options.rope_table.shape.rows() >= needed,
                  "rope_table", options.rope_table, "must have ", needed, " positions");
  }
  if (options.norm == HeadNorm::none) return;
  const bool full = options.norm == HeadNorm::full_width;
  scope.elements("weight", options.weight, map.head_dim * (full ? map.heads() : 1), heads.dtype);
  if (!full) return;
  scope.elements("row_sums", options.row_sums, map.num_rows(), acc);
  scope.require(options.norm_width >= map.heads() * map.head_dim, "rows", rows,
                "needs norm_width of at least ", map.heads() * map.head_dim, ", not ",
                options.norm_width);
}

/// `runs` are ascending and as many positions as `tensor` has in dim `dim`.
void check_runs(const OpScope& scope, const char* name, const Tensor& tensor, int dim,
                std::span<const PositionRange> runs) {
  int64_t count = 0;
  int64_t last = 0;
  for (const PositionRange& run : runs) {
    scope.require(last <= run.begin && run.begin <= run.end, name, tensor, "has a run [", run.begin,
                  ", ", run.end, ") out of order after position ", last);
    count += run.size();
    last = run.end;
  }
  scope.require(count == tensor.shape[dim], name, tensor, "has runs of ", count, " positions");
}

void check_attention_inputs(const OpScope& scope, const AttentionInputs& inputs) {
  const Tensor& q = inputs.q;
  const Tensor& k = inputs.k;
  scope.floating("q", q);
  scope.rank("q", q, 5);
  scope.rank("k", k, 5);
  scope.require(inputs.query_copies >= 1 && q.shape[3] % inputs.query_copies == 0, "q", q,
                "must hold query_copies = ", inputs.query_copies, " in [B, G, S, Kq*R, D]");
  scope.shape("k", k, {k.shape[0], q.shape[0], q.shape[1], k.shape[3], q.shape[4]}, q.dtype);
  scope.require(0 <= inputs.first_key_copy && 1 <= k.shape[0] &&
                    inputs.first_key_copy + k.shape[0] <= inputs.mask.copies,
                "k", k, "in [Kk, B, G, S, D] holds copies from ", inputs.first_key_copy, " on, of ",
                inputs.mask.copies, " in the mask");
  scope.shape("v", inputs.v, k.shape, q.dtype);
  scope.require(0 <= inputs.first_query_copy &&
                    inputs.first_query_copy + inputs.query_copies <= inputs.mask.copies,
                "q", q, "holds copies from ", inputs.first_query_copy, " on, beyond the ",
                inputs.mask.copies, " of the mask");
  if (!inputs.query_runs.empty()) check_runs(scope, "q", q, 2, inputs.query_runs);
  if (!inputs.key_runs.empty()) check_runs(scope, "k", k, 3, inputs.key_runs);
  if (inputs.document_start)
    scope.shape("document_start", inputs.document_start, {q.shape[0], q.shape[2]}, DType::i32);
}

/// out [Sq, B, Kq, A*D] and lse [B, G, Sq, Kq*R] for the q of `inputs`.
void check_attention_outputs(const OpScope& scope, const Tensor& out, const Tensor& lse,
                             const AttentionInputs& inputs) {
  const Shape& q = inputs.q.shape;
  const int64_t width = q[1] * (q[3] / inputs.query_copies) * q[4];
  scope.matrix("out", out, q[2] * q[0] * inputs.query_copies, width, inputs.q.dtype);
  scope.elements("lse", lse, q[0] * q[1] * q[2] * q[3], accumulator_dtype(inputs.q.dtype));
}

}  // namespace

void Backend::rope_table(const Tensor& table, double base) {
  OpScope scope("rope_table", device());
  scope.typed("table", table, DType::f32);
  scope.require(table.shape.rank() == 2 && table.shape[1] % 2 == 0, "table", table,
                "must be [positions, even head dim]");
  rope_table_impl(table, base);
}

void Backend::row_sum_squares(const Tensor& sums, const Tensor& x, int64_t column, int64_t width) {
  OpScope scope("row_sum_squares", device());
  scope.floating("x", x);
  scope.elements("sums", sums, x.shape.rows(), accumulator_dtype(x.dtype));
  scope.require(0 <= column && 0 <= width && column + width <= x.shape.back(), "x", x, "has no ",
                width, " columns from ", column);
  row_sum_squares_impl(sums, x, column, width);
}

void Backend::split_heads_forward(const Tensor& y, const Tensor& x, const SplitHeads& options) {
  OpScope scope("split_heads_forward", device());
  check_heads(scope, y, x, options);
  split_heads_forward_impl(y, x, options);
}

void Backend::split_heads_row_dots(const Tensor& dots, const Tensor& dy, const Tensor& x,
                                   const SplitHeads& options) {
  OpScope scope("split_heads_row_dots", device());
  check_heads(scope, dy, x, options);
  scope.require(options.norm == HeadNorm::full_width, "dots", dots,
                "are needed for full-width norms only");
  scope.elements("dots", dots, x.shape.rows(), accumulator_dtype(x.dtype));
  split_heads_row_dots_impl(dots, dy, x, options);
}

void Backend::split_heads_backward(const SplitHeadsBackward& arguments, const SplitHeads& options) {
  OpScope scope("split_heads_backward", device());
  const Tensor& dx = arguments.dx;
  check_heads(scope, arguments.dy, dx, options);
  if (options.norm != HeadNorm::none) {
    const DType acc = accumulator_dtype(dx.dtype);
    scope.matrix("x", arguments.x, dx.shape.rows(), dx.shape.back(), dx.dtype);
    scope.elements("dweight", arguments.dweight, options.weight.numel(), acc);
    if (options.norm == HeadNorm::full_width)
      scope.elements("row_dots", arguments.row_dots, dx.shape.rows(), acc);
  }
  split_heads_backward_impl(arguments, options);
}

void Backend::attention_forward(const Tensor& out, const Tensor& lse,
                                const AttentionInputs& inputs) {
  OpScope scope("attention_forward", device());
  check_attention_inputs(scope, inputs);
  check_attention_outputs(scope, out, lse, inputs);
  attention_forward_impl(out, lse, inputs);
}

void Backend::attention_backward(const AttentionBackward& arguments,
                                 const AttentionInputs& inputs) {
  OpScope scope("attention_backward", device());
  check_attention_inputs(scope, inputs);
  check_attention_outputs(scope, arguments.out, arguments.lse, inputs);
  check_attention_outputs(scope, arguments.dout, arguments.delta, inputs);
  scope.shape("dq", arguments.gradients.dq, inputs.q.shape, inputs.q.dtype);
  scope.shape("dk", arguments.gradients.dk, inputs.k.shape, inputs.q.dtype);
  scope.shape("dv", arguments.gradients.dv, inputs.k.shape, inputs.q.dtype);
  attention_backward_impl(arguments, inputs);
}

void Backend::attention_merge(const Tensor& out, const Tensor& lse, const Tensor& part,
                              const Tensor& part_lse) {
  OpScope scope("attention_merge", device());
  scope.floating("part", part);
  scope.rank("out", out, 4);
  scope.rank("lse", lse, 4);
  const DType acc = accumulator_dtype(part.dtype);
  scope.shape("out", out, part.shape, acc);
  scope.typed("lse", lse, acc);
  scope.shape("part_lse", part_lse, lse.shape, acc);
  const Shape& rows = lse.shape;
  scope.require(rows[2] == out.shape[0] && rows[0] == out.shape[1] && rows[3] % out.shape[2] == 0 &&
                    out.shape[3] % (rows[1] * rows[3] / out.shape[2]) == 0,
                "lse", lse, "must be [B, G, Sq, Kq*R] for out [Sq, B, Kq, A*D] of ",
                out.shape.to_string());
  attention_merge_impl(out, lse, part, part_lse);
}

namespace {

/// `part` is `whole` at `runs` of dim -2.
void check_positions(const OpScope& scope, const Tensor& whole, const Tensor& part,
                     std::span<const PositionRange> runs) {
  const int dim = whole.shape.rank() - 2;
  scope.require(dim >= 0 && part.shape.rank() == dim + 2 &&
                    part.shape == whole.shape.with_dim(dim, part.shape[dim]),
                "x or y", part, "must be ", whole.shape.to_string(), " but for dim -2");
  check_runs(scope, "x or y", part, dim, runs);
  scope.require(runs.empty() || runs.back().end <= whole.shape[dim], "x or y", whole,
                "has no position ", runs.empty() ? 0 : runs.back().end - 1);
}

}  // namespace

void Backend::gather_positions(const Tensor& y, const Tensor& x,
                               std::span<const PositionRange> runs) {
  OpScope scope("gather_positions", device());
  scope.floating("y", y);
  scope.typed("x", x, y.dtype);
  check_positions(scope, x, y, runs);
  gather_positions_impl(y, x, runs);
}

void Backend::accumulate_positions(const Tensor& y, const Tensor& x,
                                   std::span<const PositionRange> runs) {
  OpScope scope("accumulate_positions", device());
  scope.floating("x", x);
  scope.typed("y", y, accumulator_dtype(x.dtype));
  check_positions(scope, y, x, runs);
  accumulate_positions_impl(y, x, runs);
}

}  // namespace phalanx
