// The public ops of mixture-of-experts layers: router, moving rows, grouped products. Each checks
// its arguments, then hands over to the backend.
#include "kernels/moe_ops.h"

#include <numeric>

#include "kernels/op_scope.h"

namespace phalanx {
namespace {

void check_probabilities(const OpScope& scope, const Tensor& probabilities,
                         const Tensor& logsumexp) {
  scope.floating("probabilities", probabilities);
  scope.typed("probabilities", probabilities, accumulator_dtype(probabilities.dtype));
  scope.elements("logsumexp", logsumexp, probabilities.shape.rows(), probabilities.dtype);
}

/// `wide` has one row per entry of `places` [n, k], `narrow` one per n.
void check_places(const OpScope& scope, const Tensor& wide, const Tensor& narrow,
                  const Tensor& places) {
  scope.floating("rows", narrow);
  scope.typed("places", places, DType::i32);
  scope.rank("places", places, 2);
  scope.require(places.shape[0] == narrow.shape.rows(), "places", places, "must have ",
                narrow.shape.rows(), " rows");
  scope.matrix("rows in place order", wide, places.numel(), narrow.shape.back(), narrow.dtype);
}

}  // namespace

void MoeOps::router_forward(const RouterOutputs& outputs, const Tensor& logits) {
  OpScope scope("router_forward", device());
  const int64_t rows = logits.shape.rows();
  const int64_t topk = outputs.experts.shape.back();
  check_probabilities(scope, outputs.probabilities, outputs.logsumexp);
  scope.matrix("logits", logits, rows, outputs.probabilities.shape.back(),
               outputs.probabilities.dtype);
  scope.matrix("probabilities", outputs.probabilities, rows, logits.shape.back(), logits.dtype);
  scope.matrix("experts", outputs.experts, rows, topk, DType::i32);
  scope.matrix("weights", outputs.weights, rows, topk, logits.dtype);
  scope.require(1 <= topk && topk <= logits.shape.back(), "experts", outputs.experts,
                "must name between 1 and ", logits.shape.back(), " experts per row");
  router_forward_impl(outputs, logits);
}

void MoeOps::router_loss(const Tensor& sums, const RouterOutputs& outputs,
                         const RouterLossFactors& factors) {
  OpScope scope("router_loss", device());
  check_probabilities(scope, outputs.probabilities, outputs.logsumexp);
  scope.elements("sums", sums, 2, DType::f64);
  scope.elements("counts", factors.counts, outputs.probabilities.shape.back(), DType::i64);
  router_loss_impl(sums, outputs, factors);
}

void MoeOps::router_backward(const Tensor& dlogits, const Tensor& dweights,
                             const RouterOutputs& outputs, const RouterLossFactors& factors) {
  OpScope scope("router_backward", device());
  const Tensor& p = outputs.probabilities;
  check_probabilities(scope, p, outputs.logsumexp);
  scope.matrix("dlogits", dlogits, p.shape.rows(), p.shape.back(), p.dtype);
  scope.matrix("experts", outputs.experts, p.shape.rows(), outputs.experts.shape.back(),
               DType::i32);
  scope.matrix("dweights", dweights, p.shape.rows(), outputs.experts.shape.back(), p.dtype);
  scope.elements("counts", factors.counts, p.shape.back(), DType::i64);
  router_backward_impl(dlogits, dweights, outputs, factors);
}

void MoeOps::sort_by_expert(const Tensor& places, const Tensor& counts, const Tensor& experts) {
  OpScope scope("sort_by_expert", device());
  scope.typed("experts", experts, DType::i32);
  scope.elements("places", places, experts.numel(), DType::i32);
  scope.typed("counts", counts, DType::i64);
  sort_by_expert_impl(places, counts, experts);
}

void MoeOps::permute_rows(const Tensor& y, const Tensor& x, const Tensor& places) {
  OpScope scope("permute_rows", device());
  check_places(scope, y, x, places);
  permute_rows_impl(y, x, places);
}

void MoeOps::combine_rows(const Tensor& y, const Tensor& x, const Tensor& places,
                          const Tensor& added) {
  OpScope scope("combine_rows", device());
  check_places(scope, x, y, places);
  if (added)
    scope.matrix("added", added, y.shape.rows(), y.shape.back(), accumulator_dtype(y.dtype));
  combine_rows_impl(y, x, places, added);
}

void MoeOps::scale_rows(const Tensor& y, const Tensor& x, const Tensor& factors) {
  OpScope scope("scale_rows", device());
  scope.floating("x", x);
  scope.matrix("y", y, x.shape.rows(), x.shape.back(), x.dtype);
  scope.elements("factors", factors, x.shape.rows(), accumulator_dtype(x.dtype));
  scale_rows_impl(y, x, factors);
}

void MoeOps::row_dots(const Tensor& dots, const Tensor& a, const Tensor& b) {
  OpScope scope("row_dots", device());
  scope.floating("a", a);
  scope.matrix("b", b, a.shape.rows(), a.shape.back(), a.dtype);
  scope.elements("dots", dots, a.shape.rows(), accumulator_dtype(a.dtype));
  row_dots_impl(dots, a, b);
}

void MoeOps::grouped_matmul(const Tensor& c, const Tensor& a, const Tensor& b,
                            const GroupedMatmul& options) {
  OpScope scope("grouped_matmul", device());
  const MatmulOptions& product = options.product;
  const auto groups = static_cast<int64_t>(options.rows.size());
  const int64_t rows = std::accumulate(options.rows.begin(), options.rows.end(), int64_t{0});
  scope.floating("a", a);
  scope.floating("c", c);
  scope.matrix("a", a, rows, a.shape.back(), a.dtype);
  if (product.a == Transpose::yes) {
    scope.require(product.b == Transpose::no, "b", b, "cannot be transposed where a is");
    scope.matrix("b", b, rows, b.shape.back(), a.dtype);
    scope.shape("c", c, {groups, a.shape.back(), b.shape.back()}, c.dtype);
  } else {
    const int64_t n = c.shape.back();
    const int64_t k = a.shape.back();
    scope.matrix("c", c, rows, n, c.dtype);
    scope.shape("b", b, product.b == Transpose::yes ? Shape{groups, n, k} : Shape{groups, k, n},
                a.dtype);
  }
  scope.require(c.dtype == a.dtype || c.dtype == accumulator_dtype(a.dtype), "c", c,
                "must be the dtype of a (", dtype_name(a.dtype), ") or its accumulator");
  const int64_t other = product.a == Transpose::yes ? b.shape.back() : c.shape.back();
  scope.flops(2.0 * static_cast<double>(rows) * static_cast<double>(a.shape.back()) *
              static_cast<double>(other));
  grouped_matmul_impl(c, a, b, options);
}

}  // namespace phalanx
