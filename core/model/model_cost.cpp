// Parameters and FLOPs from the shape alone; pairs from the same mask the kernels use.
#include "core/model/model_cost.h"

namespace phalanx {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

struct LayerWeights {
  int64_t query_and_output, key_and_value, feed_forward, active_feed_forward;
};

LayerWeights layer_weights(const ModelConfig& c) {
  const int64_t h = c.hidden_size;
  LayerWeights weights{};
  weights.query_and_output = 2 * h * c.num_attention_heads * c.head_dim();
  weights.key_and_value = 2 * h * c.query_groups() * c.head_dim();
  weights.feed_forward = 3 * h * c.ffn_hidden_size;
  weights.active_feed_forward = weights.feed_forward;
  if (c.num_experts > 0) {
    const int64_t router = h * c.num_experts;
    const int64_t expert = 3 * h * c.moe_ffn_hidden_size;
    weights.feed_forward = router + c.num_experts * expert;
    weights.active_feed_forward = router + c.moe_router_topk * expert;
  }
  return weights;
}

int64_t head_norm_weights(HeadNorm norm, int64_t heads, int64_t head_dim) {
  if (norm == HeadNorm::none) return 0;
  return norm == HeadNorm::per_head ? head_dim : heads * head_dim;
}

int64_t norm_weights(const ModelConfig& c, int64_t layer) {
  const NormPlacement p = norm_placement(c, layer);
  const int64_t wide =
      p.attention_norm + p.feed_forward_norm + p.attention_output_norm + p.feed_forward_output_norm;
  return wide * c.hidden_size + head_norm_weights(p.q_norm, c.num_attention_heads, c.head_dim()) +
         head_norm_weights(p.k_norm, c.query_groups(), c.head_dim()) +
         head_norm_weights(p.v_norm, c.query_groups(), c.head_dim());
}

// Original keys that position n sees: whole earlier blocks, and its own block up to n.
int64_t visible_originals(const AttentionMask& mask, int64_t n) {
  if (mask.pattern == KeyPattern::full) return n + 1;
  const int64_t own = n / mask.block;
  int64_t earlier = 0;
  if (mask.pattern == KeyPattern::sink_window)
    earlier = std::min(own, mask.sink_blocks + mask.window_blocks - 1);
  if (mask.pattern == KeyPattern::strided) {
    const int64_t first_local = std::max<int64_t>(0, own - mask.local_blocks + 1);
    earlier = own - first_local + ceil_div(first_local, mask.stride_blocks);
  }
  return earlier * mask.block + n % mask.block + 1;
}

// Hidden keys that hidden copy `copy` of position n sees (local visibility).
int64_t visible_hidden(const AttentionMask& mask, int64_t n, int64_t copy) {
  const int64_t hidden_copies = mask.copies - 1;
  const bool by_position = mask.unit == WindowUnit::positions;
  const int64_t query = by_position ? n : n * hidden_copies + copy - 1;
  const int64_t own_position = by_position ? n : n * hidden_copies;
  const int64_t by_window = query - std::min(query, mask.window - 1);
  const int64_t first = std::max(by_window, query / mask.chunk * mask.chunk);
  const int64_t earlier = std::max<int64_t>(0, own_position - first);
  return copy + earlier * (by_position ? hidden_copies : 1);
}

// Two products (q k^T and p v), 2 FLOPs per multiply-add, over all query heads.
double flops_per_pair(const ModelConfig& config) {
  return 4.0 * static_cast<double>(config.num_attention_heads * config.head_dim());
}

}  // namespace

ParameterCount parameter_count(const ModelConfig& config) {
  const LayerWeights weights = layer_weights(config);
  ParameterCount count;
  count.embedding = config.padded_vocab_size() * config.hidden_size;
  count.head = config.untie_embeddings_and_output_weights ? count.embedding : 0;
  count.attention = config.num_layers * (weights.query_and_output + weights.key_and_value);
  count.feed_forward = config.num_layers * weights.feed_forward;
  count.norms = config.hidden_size;  // the final norm
  for (int64_t layer = 0; layer < config.num_layers; ++layer)
    count.norms += norm_weights(config, layer);
  count.total = count.embedding + count.attention + count.feed_forward + count.norms + count.head;
  count.active =
      count.total - config.num_layers * (weights.feed_forward - weights.active_feed_forward);
  return count;
}

VisiblePairs visible_pairs(const AttentionMask& mask, int64_t positions, int64_t first_query_copy) {
  return visible_pairs(mask, PositionRange{0, positions}, first_query_copy);
}

VisiblePairs visible_pairs(const AttentionMask& mask, PositionRange positions,
                           int64_t first_query_copy) {
  VisiblePairs pairs;
  for (int64_t n = positions.begin; n < positions.end; ++n) {
    const int64_t originals = visible_originals(mask, n);
    for (int64_t copy = first_query_copy; copy < mask.copies; ++copy) {
      pairs.original += originals;
      if (mask.visibility == CopyVisibility::naive)
        pairs.hidden += (originals - 1) * (mask.copies - 1) + copy;
      else if (copy > 0)
        pairs.hidden += visible_hidden(mask, n, copy);
    }
  }
  return pairs;
}

double layer_forward_flops(const ModelConfig& config, int64_t layer, int64_t seq_length) {
  const LayerWeights weights = layer_weights(config);
  const bool last = layer + 1 == config.num_layers;
  const int64_t querying = last ? 1 : config.phd_copies;
  const VisiblePairs pairs =
      visible_pairs(attention_mask(config, layer), seq_length, config.phd_copies - querying);
  return 2.0 * static_cast<double>(config.phd_copies * weights.key_and_value) +
         2.0 * static_cast<double>(querying *
                                   (weights.query_and_output + weights.active_feed_forward)) +
         flops_per_pair(config) * static_cast<double>(pairs.original + pairs.hidden) /
             static_cast<double>(seq_length);
}

double head_forward_flops(const ModelConfig& config) {
  return 2.0 * static_cast<double>(config.padded_vocab_size() * config.hidden_size);
}

ModelCost model_cost(const ModelConfig& config, int64_t seq_length) {
  const LayerWeights weights = layer_weights(config);
  const double copies = static_cast<double>(config.phd_copies);
  const double layers = static_cast<double>(config.num_layers);
  const double tokens = static_cast<double>(seq_length);
  const double pair_flops = flops_per_pair(config);
  const double key_value = 2.0 * static_cast<double>(weights.key_and_value);
  const double rest =
      2.0 * static_cast<double>(weights.query_and_output + weights.active_feed_forward);

  ModelCost cost;
  cost.dead_row_flops = (copies - 1) * rest;
  cost.forward.linear = layers * copies * (key_value + rest) - cost.dead_row_flops;
  cost.forward.head = head_forward_flops(config);
  double vanilla = layers * (key_value + rest) + cost.forward.head;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const AttentionMask mask = attention_mask(config, layer);
    const bool last = layer + 1 == config.num_layers;
    const VisiblePairs live = visible_pairs(mask, seq_length, last ? config.phd_copies - 1 : 0);
    cost.forward.attention_original += pair_flops * static_cast<double>(live.original) / tokens;
    cost.forward.attention_hidden += pair_flops * static_cast<double>(live.hidden) / tokens;
    const VisiblePairs one = visible_pairs(mask, seq_length, config.phd_copies - 1);
    vanilla += pair_flops * static_cast<double>(one.original) / tokens;
    if (!last) continue;
    const VisiblePairs all = visible_pairs(mask, seq_length);
    cost.dead_row_flops +=
        pair_flops * static_cast<double>(all.original + all.hidden - live.original - live.hidden) /
        tokens;
  }
  cost.vanilla_forward_flops = vanilla;
  cost.forward_flops_per_token = cost.forward.total();
  cost.backward_flops_per_token = 2.0 * cost.forward_flops_per_token;
  return cost;
}

}  // namespace phalanx
