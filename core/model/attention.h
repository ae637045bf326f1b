// Attention: grouped-query attention over PHD copies, with q/k/v norms, RoPE and the mask of its
// layer. In the last layer only the last copy asks (nothing reads the others).
#pragma once

#include <optional>

#include "core/model/context_attention.h"
#include "core/model/layer_context.h"
#include "kernels/base/arena.h"
#include "parallel/tensor_parallel.h"

namespace phalanx {

/// Which copies of a position query (and leave the layer).
enum class QueryRows : uint8_t { all_copies, last_copy };

class Attention {
 public:
  struct Saved {
    ColumnParallelLinear::Saved qkv_linear;    // all copies: q, k, v; last copy: k, v
    ColumnParallelLinear::Saved query_linear;  // last copy: q
    Tensor q_rows;                             // [rows of queries, width]: q before its norm
    Tensor kv_rows;                            // [S*B*K, width]: k, v before their norms
    Tensor q_sums, k_sums;                     // [rows] sums of squares (full-width norms)
    Tensor q;                                  // [B, G/tp, S, Kq*R, D]
    Tensor k, v;                               // [K, B, G/tp, S, D]
    Tensor lse;                                // [B, G/tp, S, Kq*R]
    RowParallelLinear::Saved out_linear;       // x: [S, B, Kq, A*D/tp] attention output
  };
  Attention(const LayerContext& context, QueryRows query_rows);

  /// y [S(/tp), B, Kq, H], x [S(/tp), B, K, H].
  void forward(const Tensor& y, const Tensor& x, Saved& saved, Memory& memory,
               const SequenceInputs& inputs) const;
  void backward(const Tensor& dx, const Tensor& dy, const Saved& saved, Memory& memory,
                const SequenceInputs& inputs);

 private:
  enum class Role : uint8_t { query, key, value };
  /// One of q, k, v: its norm weight and where its columns start in a row of the projection.
  struct Head {
    HeadNorm norm = HeadNorm::none;
    Parameter* weight = nullptr;
    int replicas = 1;  // tp ranks that hold the same heads
    int64_t column = 0;
    int64_t local_width = 0;  // heads/tp * D
    int64_t global_width = 0;
  };
  Head make_head(const LayerContext& context, Role role, HeadNorm norm) const;
  void project(const Tensor& x, Saved& saved, Memory& memory) const;
  SplitHeads split_options(Role role, const Saved& saved, const SequenceInputs& inputs) const;
  void sum_over_heads(const Head& head, const Tensor& sums) const;
  Tensor full_width_sums(const Head& head, const Tensor& rows, Memory& memory) const;
  void split_backward(Role role, const Tensor& drows, const Tensor& dheads, const Saved& saved,
                      Memory& memory, const SequenceInputs& inputs);
  /// Where heads and log-sum-exp live, and where the output does.
  struct AttendArenas {
    Arena& heads;
    Arena& out;
  };
  Tensor attend(Saved& saved, const AttendArenas& arenas, Arena& scratch,
                const SequenceInputs& inputs) const;
  AttentionInputs attention_inputs(const Saved& saved, const SequenceInputs& inputs) const;
  const Head& head(Role role) const;

  Backend& ops_;
  ProcessGroup& tp_;
  int64_t row_factor_;
  int64_t copies_;
  int64_t query_copies_;
  int key_replicas_;
  int64_t local_groups_;
  int64_t heads_per_group_;
  int64_t head_dim_;
  double epsilon_;
  CopyPosition copy_position_;
  Recompute recompute_;
  ContextAttention context_attention_;
  ColumnParallelLinear qkv_;
  RowParallelLinear out_;
  Head q_;
  Head k_;
  Head v_;
};

}  // namespace phalanx
