// Arguments of the larger ops: plain structs for designated initialisers. Shape letters as in
// core/README.md: S positions, B sequences, K copies, H hidden, A heads, G key-value heads,
// R = A / G query heads per group, D head dim, F feed-forward, V vocabulary.
#pragma once

#include <span>

#include "kernels/attention_mask.h"
#include "kernels/base/philox.h"
#include "kernels/base/tensor.h"
#include "kernels/position_range.h"

namespace phalanx {

enum class Transpose : uint8_t { no, yes };
enum class Accumulate : uint8_t { no, yes };

/// C[M, N] = op(A)[M, K] op(B)[K, N], added to C if `accumulate`.
struct MatmulOptions {
  Transpose a = Transpose::no;  // yes: A is stored [K, M]
  Transpose b = Transpose::no;  // yes: B is stored [N, K]
  Accumulate accumulate = Accumulate::no;
};

/// The three products of a linear layer y = x W^T.
inline constexpr MatmulOptions kTimesTransposed{.b = Transpose::yes};  // y = x W^T
inline constexpr MatmulOptions kTimes{};                               // dx = dy W
inline constexpr MatmulOptions kWeightGradient{.a = Transpose::yes,    // dW += dy^T x
                                               .accumulate = Accumulate::yes};

/// sum = a + b and y = rms_norm(sum) in one pass. `sum` may be a or b.
struct AddRmsNorm {
  Tensor sum, y, rstd;  // outputs
  Tensor a, b, weight;
  double epsilon = 1e-5;
};

/// dx = d(rms_norm)/dx * dy + dresidual; dweight += sum over rows of dy * x * rstd.
struct RmsNormBackward {
  Tensor dx, dweight;  // [rows, H] T; [H] acc
  Tensor dy, x, rstd, weight;
  Tensor dresidual{};  // [rows, H] T, optional; may be dx or dy
};

/// Normalisation of q, k or v. `per_head`: one RMSNorm per head with a weight of D shared by all
/// heads (HybridNorm). `full_width`: one RMSNorm over the whole projection (OLMo 2).
enum class HeadNorm : uint8_t { none, per_head, full_width };
template <>
struct EnumNames<HeadNorm> {
  static constexpr std::pair<HeadNorm, std::string_view> table[] = {
      {HeadNorm::none, "none"},
      {HeadNorm::per_head, "per-head"},
      {HeadNorm::full_width, "full-width"}};
};

/// RoPE position of the copies of a token: all at the token's position n, or row n*K + s.
enum class CopyPosition : uint8_t { shared, flattened };
template <>
struct EnumNames<CopyPosition> {
  static constexpr std::pair<CopyPosition, std::string_view> table[] = {
      {CopyPosition::shared, "shared"}, {CopyPosition::flattened, "flattened"}};
};

/// Where heads go. queries: [B, G, S, K*R, D] (all copies of a position fold into the query group).
/// keys: [K, B, G, S, D] (the original keys are one contiguous plane).
enum class HeadLayout : uint8_t { queries, keys };

/// Rows to heads: y = rope(norm(x[:, column : column + heads * D])), transposed to `layout`.
struct SplitHeads {
  HeadLayout layout = HeadLayout::queries;
  int64_t copies = 1;        // copies present in x, x rows being [S, B, copies]
  int64_t first_copy = 0;    // number of x's first copy (last layer: K-1 for queries)
  int64_t total_copies = 1;  // K of the model
  int64_t column = 0;        // first column of these heads in a row of x
  HeadNorm norm = HeadNorm::none;
  Tensor weight{};         // [D] per_head, [heads * D] full_width
  Tensor row_sums{};       // full_width: [rows] sum of squares over the global projection
  int64_t norm_width = 0;  // full_width: width of the global projection
  double epsilon = 1e-5;
  Tensor rope_table{};         // [positions, D] f32 from rope_table(); absent: no rotation (v)
  Tensor position_ids{};       // [S, B] i32; absent: 0..S-1
  int64_t first_position = 0;  // added to 0..S-1 when position_ids is absent
  CopyPosition copy_position = CopyPosition::shared;
};

/// Inputs of attention. q [B, G, Sq, Kq*R, D]; k, v [Kk, B, G, Sk, D]. Positions of q and of k need
/// not be those of a whole sequence, nor copies of k all K: what a rank of a shared sequence holds,
/// or was sent, is attended as it lies.
struct AttentionInputs {
  Tensor q;
  Tensor k;
  Tensor v;
  AttentionMask mask;
  Tensor document_start{};       // [B, Sq] i32; absent: no document masking
  double scale = 1.0;            // usually 1 / sqrt(D)
  int64_t query_copies = 1;      // Kq: copies present in q
  int64_t first_query_copy = 0;  // number of q's first copy
  int64_t first_key_copy = 0;    // number of k's first copy
  // Global positions of q and of k: ascending runs, one after the other along S; empty: [0, S).
  // They outlive the call.
  std::span<const PositionRange> query_runs{};
  std::span<const PositionRange> key_runs{};
};

/// Results of attention_backward: same shapes as q, k, v; assigned.
struct AttentionGradients {
  Tensor dq;
  Tensor dk;
  Tensor dv;
};

/// Softmax cross-entropy over this rank's columns [vocab_begin, vocab_begin + V_local).
struct CrossEntropyOptions {
  Tensor targets{};  // [rows] i32, global ids; kIgnored (-1) takes no loss
  int64_t vocab_begin = 0;
  int64_t vocab_size = 0;   // columns at or beyond this global id are padding, never counted
  double loss_scale = 1.0;  // d(objective)/d(cross-entropy of one row), usually 1 / loss tokens
  double z_loss = 0.0;      // coefficient of logsumexp^2
};

/// What the router decides for n rows and E experts, k of which each row uses.
struct RouterOutputs {
  Tensor probabilities;  // [n, E] acc
  Tensor logsumexp;      // [n] acc
  Tensor experts;        // [n, k] i32
  Tensor weights;        // [n, k] acc: probabilities of `experts`
};

/// Factors of the router's own losses (see MoeOps::router_loss).
struct RouterLossFactors {
  Tensor counts;  // [E] i64: choices of each expert, over all rows that share the loss
  double balance = 0.0;
  double z = 0.0;
};

/// Products of groups of rows that lie one after the other.
struct GroupedMatmul {
  std::span<const int64_t> rows;  // of each group; host memory
  MatmulOptions product;
};

/// Flat spans of one optimizer shard, all of equal length.
struct AdamWTensors {
  Tensor parameter{};  // compute dtype, overwritten with the rounded master; absent if master is it
  Tensor master;       // f32 (f64 in checks)
  Tensor exp_avg;      // as master
  Tensor exp_avg_sq;   // as master
  Tensor gradient;     // as master
};

/// Decoupled weight decay (Loshchilov & Hutter, ICLR 2019, Algorithm 2 with bias correction).
struct AdamWOptions {
  double learning_rate = 0.0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.0;
  double gradient_scale = 1.0;  // clipping, folded in
  int64_t step = 1;             // 1 for the first update
};

/// A rectangle of a global [rows, columns] parameter, drawn at global element indices so that
/// values do not depend on the cut.
struct TruncatedNormal {
  Philox random;
  double stddev = 1.0;
  double cut = 3.0;            // in standard deviations
  int64_t global_columns = 0;  // columns of the whole parameter
  int64_t row_begin = 0;
  int64_t column_begin = 0;
};

}  // namespace phalanx
