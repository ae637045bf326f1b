// Backend: every op of the trainer, forward beside backward. Public functions check shapes; private
// virtual `_impl` does the work. Implementations: cpu/ (the readable reference), a null one that
// only lets shapes through (to measure memory), cuda/.
//
// Rules for all ops. Outputs come first, then inputs, then scalars. Tensors are dense and live on
// the backend's device. Activation gradients are assigned, parameter gradients (dweight, dtable)
// accumulate and are f32 (f64 in f64 checks) whatever the compute dtype. T below is the compute
// dtype (f32, bf16 or f64), "acc" is f32 for f32 and bf16, f64 for f64. Ops never allocate memory
// that grows with the problem. One thread calls; the backend threads inside.
#pragma once

#include "kernels/device_ops.h"
#include "kernels/moe_ops.h"
#include "kernels/op_arguments.h"

namespace phalanx {

/// The ops below, those of MoeOps, and the device itself.
class Backend : public DeviceOps, public MoeOps {
 public:
  Device device() const override = 0;

  // --- copies ---
  /// y = 0.
  void zero(const Tensor& y);
  /// y = x, converting between floating dtypes; same number of elements.
  void copy(const Tensor& y, const Tensor& x);
  /// y = a + b, all T, same shape; y may be a or b.
  void add(const Tensor& y, const Tensor& a, const Tensor& b);
  /// y *= factor; any floating dtype.
  void scale(const Tensor& y, double factor);
  /// w = random.truncated_normal at global indices; 1-D or 2-D rectangle, any floating dtype.
  void truncated_normal(const Tensor& w, const TruncatedNormal& options);
  /// y = value; any floating dtype.
  void fill(const Tensor& y, double value);

  // --- matrix products: C acc or T; A and B T ---
  void matmul(const Tensor& c, const Tensor& a, const Tensor& b, const MatmulOptions& options);

  // --- embedding ---
  /// y[s, b, k, :] = table[ids[s, b] - vocab_begin], for all K copies; ids of other ranks give 0.
  /// y [S, B, K, H] T, table [V/tp, H] T, ids [S, B] i32.
  void embedding_forward(const Tensor& y, const Tensor& table, const Tensor& ids,
                         int64_t vocab_begin);
  /// dtable[ids[s, b] - vocab_begin] += sum over copies of dy[s, b, :, :]. Deterministic.
  void embedding_backward(const Tensor& dtable, const Tensor& dy, const Tensor& ids,
                          int64_t vocab_begin);

  // --- copies of a position ---
  /// y [S, B, H] = x [S, B, K, H] at copy `copy`.
  void select_copy(const Tensor& y, const Tensor& x, int64_t copy);
  /// dx [S, B, K, H] at copy `copy` += dy [S, B, H].
  void accumulate_copy(const Tensor& dx, const Tensor& dy, int64_t copy);

  // --- some positions of a tensor: dim -2, the last but one ---
  /// y [.., n, D] = x [.., S, D] at positions `runs` (n in all, ascending), any floating dtype.
  void gather_positions(const Tensor& y, const Tensor& x, std::span<const PositionRange> runs);
  /// y [.., S, D] at positions `runs` += x [.., n, D]; y acc, x T.
  void accumulate_positions(const Tensor& y, const Tensor& x, std::span<const PositionRange> runs);

  // --- RMSNorm: y = (x / sqrt(mean(x^2) + eps)) * weight over the last dim ---
  /// y, x [rows, H] T; rstd [rows] acc; weight [H] T. As in HybridNorm's code the normalised value
  /// is rounded to T before it is multiplied by the weight.
  void rms_norm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& weight,
                        double epsilon);
  void add_rms_norm_forward(const AddRmsNorm& arguments);
  void rms_norm_backward(const RmsNormBackward& arguments);

  // --- heads: norm, RoPE and transpose of q, k or v ---
  /// table [P, D] f32: cos(p * base^(-2i/D)) for i < D/2, then sin (half-split, NeoX).
  void rope_table(const Tensor& table, double base);
  /// sums [rows] acc = sum over `width` columns from `column` of x^2 (full-width norms).
  void row_sum_squares(const Tensor& sums, const Tensor& x, int64_t column, int64_t width);
  /// y in options.layout; x [rows, width] T.
  void split_heads_forward(const Tensor& y, const Tensor& x, const SplitHeads& options);
  /// full_width only: dots [rows] acc = sum over these heads of dy' * weight * x * rstd, where dy'
  /// is dy rotated back; summed over tp before the backward.
  void split_heads_row_dots(const Tensor& dots, const Tensor& dy, const Tensor& x,
                            const SplitHeads& options);
  /// dx [rows, width] at these heads' columns (others untouched); dweight accumulates and may be
  /// absent without norm; x may be absent without norm; row_dots [rows] acc for full_width.
  struct SplitHeadsBackward {
    Tensor dx, dweight{};
    Tensor dy, x{}, row_dots{};
  };
  void split_heads_backward(const SplitHeadsBackward& arguments, const SplitHeads& options);

  // --- attention: softmax(q k^T * scale + mask) v ---
  /// out [Sq, B, Kq, A*D] T (position-major rows, head g*R + r); lse [B, G, Sq, Kq*R] acc.
  /// A row that sees no key gives out = 0 and lse = -infinity.
  void attention_forward(const Tensor& out, const Tensor& lse, const AttentionInputs& inputs);
  /// delta [B, G, Sq, Kq*R] acc is scratch for rowsum(dout * out).
  struct AttentionBackward {
    AttentionGradients gradients;  // outputs
    Tensor delta;
    Tensor dout, out, lse;
  };
  void attention_backward(const AttentionBackward& arguments, const AttentionInputs& inputs);

  /// Attention to further keys joins the sum so far, exactly: with
  /// lse' = log(exp(lse) + exp(part_lse)), out = exp(lse - lse') out + exp(part_lse - lse') part.
  /// In place: out [Sq, B, Kq, A*D] acc, lse [B, G, Sq, Kq*R] acc. part, of out's shape, is T or
  /// acc; part_lse as lse. Rows that saw nothing on one side (-infinity) take the other.
  void attention_merge(const Tensor& out, const Tensor& lse, const Tensor& part,
                       const Tensor& part_lse);

  // --- SwiGLU: act = silu(gate) * up; gate_up [rows, 2F] = gate | up; act [rows, F] ---
  void swiglu_forward(const Tensor& act, const Tensor& gate_up);
  /// dgate_up may be gate_up.
  void swiglu_backward(const Tensor& dgate_up, const Tensor& dact, const Tensor& gate_up);

  // --- cross-entropy over a vocabulary shard ---
  /// stats [rows, 3] acc = max, sum of exp(logit - max), logit of the target (0 if not here), over
  /// this rank's columns. logits [rows, V/tp] T or acc.
  void cross_entropy_forward(const Tensor& stats, const Tensor& logits,
                             const CrossEntropyOptions& options);
  /// stats [rows, 3] acc of whole rows from parts [ranks, rows, 3] acc, the ranks' own stats: the
  /// softmax over a row that is cut over ranks. Sums in f64, in the order of the ranks.
  void cross_entropy_merge(const Tensor& stats, const Tensor& parts);
  /// In place: logits become loss_scale * ((1 + 2 z_loss lse) softmax - onehot(target)); rows with
  /// an ignored target and padded columns become 0. stats are global (over tp).
  void cross_entropy_backward(const Tensor& logits, const Tensor& stats,
                              const CrossEntropyOptions& options);
  /// sums [2] f64 += sum over rows with a target of {lse - target logit, lse^2}.
  void cross_entropy_loss(const Tensor& sums, const Tensor& stats,
                          const CrossEntropyOptions& options);

  // --- optimizer ---
  void adamw_step(const AdamWTensors& tensors, const AdamWOptions& options);
  /// sum [1] f64 += sum of squares of x.
  void add_sum_squares(const Tensor& sum, const Tensor& x);

 private:
  virtual void zero_impl(const Tensor& y) = 0;
  virtual void copy_impl(const Tensor& y, const Tensor& x) = 0;
  virtual void add_impl(const Tensor& y, const Tensor& a, const Tensor& b) = 0;
  virtual void scale_impl(const Tensor& y, double factor) = 0;
  virtual void fill_impl(const Tensor& y, double value) = 0;
  virtual void truncated_normal_impl(const Tensor& w, const TruncatedNormal& options) = 0;
  virtual void matmul_impl(const Tensor& c, const Tensor& a, const Tensor& b,
                           const MatmulOptions& options) = 0;
  virtual void embedding_forward_impl(const Tensor& y, const Tensor& table, const Tensor& ids,
                                      int64_t vocab_begin) = 0;
  virtual void embedding_backward_impl(const Tensor& dtable, const Tensor& dy, const Tensor& ids,
                                       int64_t vocab_begin) = 0;
  virtual void select_copy_impl(const Tensor& y, const Tensor& x, int64_t copy) = 0;
  virtual void accumulate_copy_impl(const Tensor& dx, const Tensor& dy, int64_t copy) = 0;
  virtual void gather_positions_impl(const Tensor& y, const Tensor& x,
                                     std::span<const PositionRange> runs) = 0;
  virtual void accumulate_positions_impl(const Tensor& y, const Tensor& x,
                                         std::span<const PositionRange> runs) = 0;
  virtual void rms_norm_forward_impl(const Tensor& y, const Tensor& rstd, const Tensor& x,
                                     const Tensor& weight, double epsilon) = 0;
  virtual void add_rms_norm_forward_impl(const AddRmsNorm& arguments) = 0;
  virtual void rms_norm_backward_impl(const RmsNormBackward& arguments) = 0;
  virtual void rope_table_impl(const Tensor& table, double base) = 0;
  virtual void row_sum_squares_impl(const Tensor& sums, const Tensor& x, int64_t column,
                                    int64_t width) = 0;
  virtual void split_heads_forward_impl(const Tensor& y, const Tensor& x,
                                        const SplitHeads& options) = 0;
  virtual void split_heads_row_dots_impl(const Tensor& dots, const Tensor& dy, const Tensor& x,
                                         const SplitHeads& options) = 0;
  virtual void split_heads_backward_impl(const SplitHeadsBackward& arguments,
                                         const SplitHeads& options) = 0;
  virtual void attention_forward_impl(const Tensor& out, const Tensor& lse,
                                      const AttentionInputs& inputs) = 0;
  virtual void attention_backward_impl(const AttentionBackward& arguments,
                                       const AttentionInputs& inputs) = 0;
  virtual void attention_merge_impl(const Tensor& out, const Tensor& lse, const Tensor& part,
                                    const Tensor& part_lse) = 0;
  virtual void swiglu_forward_impl(const Tensor& act, const Tensor& gate_up) = 0;
  virtual void swiglu_backward_impl(const Tensor& dgate_up, const Tensor& dact,
                                    const Tensor& gate_up) = 0;
  virtual void cross_entropy_forward_impl(const Tensor& stats, const Tensor& logits,
                                          const CrossEntropyOptions& options) = 0;
  virtual void cross_entropy_merge_impl(const Tensor& stats, const Tensor& parts) = 0;
  virtual void cross_entropy_backward_impl(const Tensor& logits, const Tensor& stats,
                                           const CrossEntropyOptions& options) = 0;
  virtual void cross_entropy_loss_impl(const Tensor& sums, const Tensor& stats,
                                       const CrossEntropyOptions& options) = 0;
  virtual void adamw_step_impl(const AdamWTensors& tensors, const AdamWOptions& options) = 0;
  virtual void add_sum_squares_impl(const Tensor& sum, const Tensor& x) = 0;
};

}  // namespace phalanx
