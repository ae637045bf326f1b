// What a model costs: parameters by group and FLOPs per original token, counted exactly.
//
// FLOPs are model FLOPs: 2 per multiply-add of every matrix product, softmax and element-wise work
// left out, recomputation left out; the backward has twice the forward's products.
#pragma once

#include "core/model/model_config.h"

namespace phalanx {

struct ParameterCount {
  int64_t embedding = 0;
  int64_t attention = 0;
  int64_t feed_forward = 0;  // all experts and the router, if there are experts
  int64_t norms = 0;
  int64_t head = 0;  // 0 when tied to the embedding
  int64_t total = 0;
  int64_t active = 0;  // read by one token: of the experts only moe-router-topk
};

/// Parameters of the whole model, with the padded vocabulary (vocab_size > 0).
ParameterCount parameter_count(const ModelConfig& config);

/// Visible (query, key) pairs of one sequence. `original`: keys that are copy 0; `hidden`: the
/// rest.
struct VisiblePairs {
  int64_t original = 0;
  int64_t hidden = 0;
};

/// Pairs of the queries with copy >= first_query_copy at `positions` of a sequence without document
/// masking: what a rank that holds them has to do. O(positions * copies) time.
VisiblePairs visible_pairs(const AttentionMask& mask, PositionRange positions,
                           int64_t first_query_copy = 0);

/// Pairs of the queries with copy >= first_query_copy in a sequence of `positions` tokens without
/// document masking. O(positions * copies) time.
VisiblePairs visible_pairs(const AttentionMask& mask, int64_t positions,
                           int64_t first_query_copy = 0);

/// Forward FLOPs per original token by kind of work.
struct ForwardFlops {
  double linear = 0;              // projections and feed-forward of all rows
  double attention_original = 0;  // attention to original keys
  double attention_hidden = 0;    // attention to hidden copies: the local band
  double head = 0;                // last copy only
  double total() const { return linear + attention_original + attention_hidden + head; }
};

struct ModelCost {
  ForwardFlops forward;  // per original token, averaged over the sequence
  double forward_flops_per_token = 0;
  double backward_flops_per_token = 0;
  double dead_row_flops = 0;         // forward FLOPs per token that the last layer leaves out
  double vanilla_forward_flops = 0;  // the same model with K = 1
};

/// Forward FLOPs per original token of one layer, and of the head: what a pipeline is balanced by.
double layer_forward_flops(const ModelConfig& config, int64_t layer, int64_t seq_length);
double head_forward_flops(const ModelConfig& config);

/// Costs of training on sequences of `seq_length` tokens. In the last layer only the last copy
/// queries, so its q and output projections and its feed-forward run on one row per token.
ModelCost model_cost(const ModelConfig& config, int64_t seq_length);

}  // namespace phalanx
