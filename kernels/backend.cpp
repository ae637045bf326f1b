// The public ops: each checks its arguments, then hands over to the backend. Copies, matrix
// products, embedding, norms and element-wise ops here; heads and attention in
// backend_attention.cpp.
#include "kernels/backend.h"

#include "kernels/op_scope.h"

namespace phalanx {

void Backend::zero(const Tensor& y) {
  OpScope scope("zero", device());
  scope.placed("y", y);
  zero_impl(y);
}

void Backend::copy(const Tensor& y, const Tensor& x) {
  OpScope scope("copy", device());
  scope.placed("x", x);
  scope.elements("y", y, x.numel());
  if (y.dtype != x.dtype) {
    scope.floating("y", y);
    scope.floating("x", x);
  }
  copy_impl(y, x);
}

void Backend::add(const Tensor& y, const Tensor& a, const Tensor& b) {
  OpScope scope("add", device());
  scope.floating("y", y);
  scope.elements("a", a, y.numel(), y.dtype);
  scope.elements("b", b, y.numel(), y.dtype);
  add_impl(y, a, b);
}

void Backend::scale(const Tensor& y, double factor) {
  OpScope scope("scale", device());
  scope.floating("y", y);
  scale_impl(y, factor);
}

void Backend::fill(const Tensor& y, double value) {
  OpScope scope("fill", device());
  scope.floating("y", y);
  fill_impl(y, value);
}

void Backend::truncated_normal(const Tensor& w, const TruncatedNormal& options) {
  OpScope scope("truncated_normal", device());
  scope.floating("w", w);
  scope.require(w.shape.rank() <= 2, "w", w, "must have one or two dims");
  // One dim may lie along rows or columns of its global parameter, so only two dims are bounded.
  scope.require(
      w.shape.rank() == 1 || options.column_begin + w.shape.back() <= options.global_columns, "w",
      w, "must end within global_columns ", options.global_columns, " after column_begin ",
      options.column_begin);
  scope.require(options.cut > 0.0, "w", w, "needs a cut above 0, not ", options.cut);
  truncated_normal_impl(w, options);
}

void Backend::matmul(const Tensor& c, const Tensor& a, const Tensor& b,
                     const MatmulOptions& options) {
  OpScope scope("matmul", device());
  scope.floating("a", a);
  scope.floating("c", c);
  scope.require(a.shape.rank() >= 2, "a", a, "must have two dims or more");
  const bool a_transposed = options.a == Transpose::yes;
  const int64_t rows = a_transposed ? a.shape.back() : a.shape.rows();
  const int64_t depth = a_transposed ? a.shape.rows() : a.shape.back();
  const int64_t columns = c.shape.back();
  scope.matrix("c", c, rows, columns, c.dtype);
  if (options.b == Transpose::yes)
    scope.matrix("b", b, columns, depth, a.dtype);
  else
    scope.matrix("b", b, depth, columns, a.dtype);
  scope.require(c.dtype == a.dtype || c.dtype == accumulator_dtype(a.dtype), "c", c,
                "must be the dtype of a (", dtype_name(a.dtype), ") or its accumulator");
  scope.flops(2.0 * static_cast<double>(rows) * static_cast<double>(depth) *
              static_cast<double>(columns));
  matmul_impl(c, a, b, options);
}

void Backend::embedding_forward(const Tensor& y, const Tensor& table, const Tensor& ids,
                                int64_t vocab_begin) {
  OpScope scope("embedding_forward", device());
  scope.floating("table", table);
  scope.typed("ids", ids, DType::i32);
  scope.require(ids.numel() == 0 || y.shape.rows() % ids.numel() == 0, "y", y,
                "needs a whole number of rows per id; ids has ", ids.numel());
  scope.matrix("y", y, y.shape.rows(), table.shape.back(), table.dtype);
  embedding_forward_impl(y, table, ids, vocab_begin);
}

void Backend::embedding_backward(const Tensor& dtable, const Tensor& dy, const Tensor& ids,
                                 int64_t vocab_begin) {
  OpScope scope("embedding_backward", device());
  scope.floating("dy", dy);
  scope.typed("ids", ids, DType::i32);
  scope.require(ids.numel() == 0 || dy.shape.rows() % ids.numel() == 0, "dy", dy,
                "needs a whole number of rows per id; ids has ", ids.numel());
  scope.matrix("dtable", dtable, dtable.shape.rows(), dy.shape.back(), accumulator_dtype(dy.dtype));
  embedding_backward_impl(dtable, dy, ids, vocab_begin);
}

void Backend::select_copy(const Tensor& y, const Tensor& x, int64_t copy) {
  OpScope scope("select_copy", device());
  scope.copies("y", y, "x", x, copy);
  select_copy_impl(y, x, copy);
}

void Backend::accumulate_copy(const Tensor& dx, const Tensor& dy, int64_t copy) {
  OpScope scope("accumulate_copy", device());
  scope.copies("dy", dy, "dx", dx, copy);
  accumulate_copy_impl(dx, dy, copy);
}

void Backend::rms_norm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x,
                               const Tensor& weight, double epsilon) {
  OpScope scope("rms_norm_forward", device());
  scope.floating("x", x);
  scope.matrix("y", y, x.shape.rows(), x.shape.back(), x.dtype);
  scope.elements("rstd", rstd, x.shape.rows(), accumulator_dtype(x.dtype));
  scope.elements("weight", weight, x.shape.back(), x.dtype);
  rms_norm_forward_impl(y, rstd, x, weight, epsilon);
}

void Backend::add_rms_norm_forward(const AddRmsNorm& arguments) {
  OpScope scope("add_rms_norm_forward", device());
  const Tensor& a = arguments.a;
  scope.floating("a", a);
  scope.matrix("b", arguments.b, a.shape.rows(), a.shape.back(), a.dtype);
  scope.matrix("sum", arguments.sum, a.shape.rows(), a.shape.back(), a.dtype);
  scope.matrix("y", arguments.y, a.shape.rows(), a.shape.back(), a.dtype);
  scope.elements("rstd", arguments.rstd, a.shape.rows(), accumulator_dtype(a.dtype));
  scope.elements("weight", arguments.weight, a.shape.back(), a.dtype);
  add_rms_norm_forward_impl(arguments);
}

void Backend::rms_norm_backward(const RmsNormBackward& arguments) {
  OpScope scope("rms_norm_backward", device());
  const Tensor& x = arguments.x;
  const int64_t rows = x.shape.rows();
  const int64_t width = x.shape.back();
  scope.floating("x", x);
  scope.matrix("dx", arguments.dx, rows, width, x.dtype);
  scope.matrix("dy", arguments.dy, rows, width, x.dtype);
  if (arguments.dresidual) scope.matrix("dresidual", arguments.dresidual, rows, width, x.dtype);
  scope.elements("dweight", arguments.dweight, width, accumulator_dtype(x.dtype));
  scope.elements("rstd", arguments.rstd, rows, accumulator_dtype(x.dtype));
  scope.elements("weight", arguments.weight, width, x.dtype);
  rms_norm_backward_impl(arguments);
}

void Backend::swiglu_forward(const Tensor& act, const Tensor& gate_up) {
  OpScope scope("swiglu_forward", device());
  scope.floating("act", act);
  scope.matrix("gate_up", gate_up, act.shape.rows(), 2 * act.shape.back(), act.dtype);
  swiglu_forward_impl(act, gate_up);
}

void Backend::swiglu_backward(const Tensor& dgate_up, const Tensor& dact, const Tensor& gate_up) {
  OpScope scope("swiglu_backward", device());
  scope.floating("dact", dact);
  scope.matrix("gate_up", gate_up, dact.shape.rows(), 2 * dact.shape.back(), dact.dtype);
  scope.matrix("dgate_up", dgate_up, dact.shape.rows(), 2 * dact.shape.back(), dact.dtype);
  swiglu_backward_impl(dgate_up, dact, gate_up);
}

void Backend::cross_entropy_forward(const Tensor& stats, const Tensor& logits,
                                    const CrossEntropyOptions& options) {
  OpScope scope("cross_entropy_forward", device());
  scope.floating("logits", logits);
  scope.matrix("stats", stats, logits.shape.rows(), 3, accumulator_dtype(logits.dtype));
  scope.elements("targets", options.targets, logits.shape.rows(), DType::i32);
  cross_entropy_forward_impl(stats, logits, options);
}

void Backend::cross_entropy_backward(const Tensor& logits, const Tensor& stats,
                                     const CrossEntropyOptions& options) {
  OpScope scope("cross_entropy_backward", device());
  scope.floating("logits", logits);
  scope.matrix("stats", stats, logits.shape.rows(), 3, accumulator_dtype(logits.dtype));
  scope.elements("targets", options.targets, logits.shape.rows(), DType::i32);
  cross_entropy_backward_impl(logits, stats, options);
}

void Backend::cross_entropy_merge(const Tensor& stats, const Tensor& parts) {
  OpScope scope("cross_entropy_merge", device());
  scope.floating("stats", stats);
  scope.rank("parts", parts, 3);
  scope.require(parts.shape[0] >= 1 && parts.shape[2] == 3, "parts", parts,
                "must be [ranks, rows, 3]");
  scope.matrix("stats", stats, parts.shape[1], 3, accumulator_dtype(stats.dtype));
  scope.typed("parts", parts, stats.dtype);
  cross_entropy_merge_impl(stats, parts);
}

void Backend::cross_entropy_loss(const Tensor& sums, const Tensor& stats,
                                 const CrossEntropyOptions& options) {
  OpScope scope("cross_entropy_loss", device());
  scope.elements("sums", sums, 2, DType::f64);
  scope.floating("stats", stats);
  scope.matrix("stats", stats, stats.shape.rows(), 3, accumulator_dtype(stats.dtype));
  scope.elements("targets", options.targets, stats.shape.rows(), DType::i32);
  cross_entropy_loss_impl(sums, stats, options);
}

void Backend::adamw_step(const AdamWTensors& tensors, const AdamWOptions& options) {
  OpScope scope("adamw_step", device());
  const Tensor& master = tensors.master;
  scope.floating("master", master);
  scope.typed("master", master, accumulator_dtype(master.dtype));
  if (tensors.parameter) {
    scope.floating("parameter", tensors.parameter);
    scope.elements("parameter", tensors.parameter, master.numel());
  }
  scope.elements("exp_avg", tensors.exp_avg, master.numel(), master.dtype);
  scope.elements("exp_avg_sq", tensors.exp_avg_sq, master.numel(), master.dtype);
  scope.elements("gradient", tensors.gradient, master.numel(), master.dtype);
  scope.require(options.step >= 1, "master", master, "needs a step counted from 1, not ",
                options.step);
  adamw_step_impl(tensors, options);
}

void Backend::add_sum_squares(const Tensor& sum, const Tensor& x) {
  OpScope scope("add_sum_squares", device());
  scope.elements("sum", sum, 1, DType::f64);
  scope.floating("x", x);
  add_sum_squares_impl(sum, x);
}

}  // namespace phalanx
