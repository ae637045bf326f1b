// MoeOps: the part of Backend that mixture-of-experts layers use, a file of its own for its length.
// Rules as in backend.h. n rows, E experts, k experts per row, W the width of a row.
#pragma once

#include "kernels/op_arguments.h"

namespace phalanx {

class MoeOps {
 public:
  virtual ~MoeOps() = default;
  MoeOps() = default;
  MoeOps(const MoeOps&) = delete;
  MoeOps& operator=(const MoeOps&) = delete;

  virtual Device device() const = 0;

  /// probabilities = softmax(logits) over E, their logsumexp, the k most probable experts of each
  /// row (largest first, the lower number on a tie) and their probabilities as they are: weights
  /// do not sum to 1. logits [n, E] acc; probabilities may be logits.
  void router_forward(const RouterOutputs& outputs, const Tensor& logits);
  /// sums [2] f64 += {balance * sum over rows and experts of counts[e] * probability, z * sum over
  /// rows of logsumexp^2}.
  void router_loss(const Tensor& sums, const RouterOutputs& outputs,
                   const RouterLossFactors& factors);
  /// dlogits [n, E] acc of dweights [n, k] acc and of router_loss.
  void router_backward(const Tensor& dlogits, const Tensor& dweights, const RouterOutputs& outputs,
                       const RouterLossFactors& factors);
  /// places [n, k] i32: where each choice lies when choices are sorted by expert (stable); counts
  /// [E] i64: choices of each expert. experts [n, k] i32.
  void sort_by_expert(const Tensor& places, const Tensor& counts, const Tensor& experts);
  /// y[places[i, j]] = x[i]: y [n k, W], x [n, W] T, places [n, k] a permutation of 0..n k - 1.
  void permute_rows(const Tensor& y, const Tensor& x, const Tensor& places);
  /// The transpose: y[i] = added[i] + sum over j of x[places[i, j]], summed in acc in the order of
  /// j. added [n, W] acc, optional.
  void combine_rows(const Tensor& y, const Tensor& x, const Tensor& places,
                    const Tensor& added = {});
  /// y[i] = factors[i] * x[i]: y, x [n, W] T (y may be x), factors [n] acc.
  void scale_rows(const Tensor& y, const Tensor& x, const Tensor& factors);
  /// dots[i] = <a[i], b[i]>: a, b [n, W] T, dots [n] acc.
  void row_dots(const Tensor& dots, const Tensor& a, const Tensor& b);
  /// One product per group of rows: for a not transposed, C_g [rows_g, N] = A_g [rows_g, K]
  /// op(B_g), c and a holding the groups one after the other and b [G, ., .] one matrix each; for a
  /// transposed, c [G, M, N] at g = A_g^T B_g. Groups may be empty.
  void grouped_matmul(const Tensor& c, const Tensor& a, const Tensor& b,
                      const GroupedMatmul& options);

 private:
  virtual void router_forward_impl(const RouterOutputs& outputs, const Tensor& logits) = 0;
  virtual void router_loss_impl(const Tensor& sums, const RouterOutputs& outputs,
                                const RouterLossFactors& factors) = 0;
  virtual void router_backward_impl(const Tensor& dlogits, const Tensor& dweights,
                                    const RouterOutputs& outputs,
                                    const RouterLossFactors& factors) = 0;
  virtual void sort_by_expert_impl(const Tensor& places, const Tensor& counts,
                                   const Tensor& experts) = 0;
  virtual void permute_rows_impl(const Tensor& y, const Tensor& x, const Tensor& places) = 0;
  virtual void combine_rows_impl(const Tensor& y, const Tensor& x, const Tensor& places,
                                 const Tensor& added) = 0;
  virtual void scale_rows_impl(const Tensor& y, const Tensor& x, const Tensor& factors) = 0;
  virtual void row_dots_impl(const Tensor& dots, const Tensor& a, const Tensor& b) = 0;
  virtual void grouped_matmul_impl(const Tensor& c, const Tensor& a, const Tensor& b,
                                   const GroupedMatmul& options) = 0;
};

}  // namespace phalanx
