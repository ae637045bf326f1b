// ModelConfig: the shape of a PHD-Transformer, its norm placement, mask and initialisation. Plain
// numbers; everything a layer needs comes from here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/model/model_enums.h"
#include "kernels/attention_mask.h"
#include "kernels/base/fields.h"
#include "kernels/op_arguments.h"
#include "parallel/parallel_config.h"

namespace phalanx {

/// The four switches of HybridNorm's code, the q, k, v norms, and the output norms, of one layer:
///   a = attention_norm ? N(x) : x;  y = (attention_residual_normed ? a : x) + No(Attention(a))
///   f = feed_forward_norm ? N(y) : y;  x' = (feed_forward_residual_normed ? f : y) + No(Mlp(f))
struct NormPlacement {
  bool attention_norm = true;
  bool attention_residual_normed = false;
  bool feed_forward_norm = true;
  bool feed_forward_residual_normed = false;
  HeadNorm q_norm = HeadNorm::none;
  HeadNorm k_norm = HeadNorm::none;
  HeadNorm v_norm = HeadNorm::none;  // none or per_head
  bool attention_output_norm = false;
  bool feed_forward_output_norm = false;
  double attention_output_norm_weight = 1.0;  // initial weight of the attention-output norm
  bool operator==(const NormPlacement&) const = default;
};

struct ModelConfig {
  int64_t num_layers = 4;
  int64_t hidden_size = 128;
  int64_t ffn_hidden_size = 352;
  int64_t num_attention_heads = 4;
  int64_t num_query_groups = 0;  // 0: as many as heads
  int64_t kv_channels = 0;       // head dim; 0: hidden / heads
  int64_t vocab_size = 257;
  int64_t make_vocab_size_divisible_by = 128;
  bool untie_embeddings_and_output_weights = false;
  double rotary_base = 500000.0;
  double norm_epsilon = 1e-5;

  NormScheme norm_scheme = NormScheme::hybrid_norm_star;
  // Single switches that win over the scheme, for ablations.
  Override attention_norm = Override::automatic;
  Override attention_residual_normed = Override::automatic;
  Override ffn_norm = Override::automatic;
  Override ffn_residual_normed = Override::automatic;
  Override qk_layernorm = Override::automatic;  // per head
  Override v_layernorm = Override::automatic;   // per head

  InitScheme init_method = InitScheme::megatron;
  double init_method_std = 0.0;  // 0: 1 / sqrt(2.5 hidden)
  double z_loss_coeff = 0.0;

  PhdMode phd = PhdMode::cswa;
  int64_t phd_copies = 1;   // K
  int64_t phd_window = 16;  // W
  int64_t phd_chunk = 32;   // C
  WindowUnit phd_window_unit = WindowUnit::positions;
  CopyPosition phd_rope_position = CopyPosition::shared;

  KeyPattern sparse_pattern = KeyPattern::full;  // LongGen: pattern of the sparse layers
  int64_t sparse_full_layers = 0;                // middle layers that stay full; 0: round(0.375 L)
  int64_t sparse_block = 64;
  int64_t sparse_sink_blocks = 1;
  int64_t sparse_window_blocks = 32;
  int64_t sparse_stride_blocks = 64;
  int64_t sparse_local_blocks = 1;

  int64_t num_experts = 0;  // 0: dense
  int64_t moe_router_topk = 8;
  int64_t moe_ffn_hidden_size = 1024;
  double moe_aux_loss_coeff = 0.01;
  double moe_z_loss_coeff = 0.001;

  int64_t copies() const { return phd_copies; }
  int64_t query_groups() const {
    return num_query_groups > 0 ? num_query_groups : num_attention_heads;
  }
  int64_t head_dim() const {
    return kv_channels > 0 ? kv_channels : hidden_size / num_attention_heads;
  }
  int64_t padded_vocab_size() const {
    const int64_t step = make_vocab_size_divisible_by;
    return (vocab_size + step - 1) / step * step;
  }
};

/// The switches of layer `layer` (0-based): scheme plus single overrides.
NormPlacement norm_placement(const ModelConfig& config, int64_t layer);
/// The attention mask of layer `layer`, full or sparse.
AttentionMask attention_mask(const ModelConfig& config, int64_t layer);
/// Base standard deviation, and that of output projections (attention.out, mlp.down) of `layer`.
double base_init_std(const ModelConfig& config);
double output_init_std(const ModelConfig& config, int64_t layer);

/// Everything wrong with the model for sequences of `seq_length`: one sentence per problem.
std::vector<std::string> validate(const ModelConfig& config, int64_t seq_length);
/// Everything wrong with laying the model's experts out on `parallel`; nothing for a dense model
/// with no expert parallelism.
std::vector<std::string> validate_experts(const ModelConfig& config,
                                          const ParallelConfig& parallel);

template <class Config, class Visitor>
requires ConfigOf<Config, ModelConfig>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Model");
  visit("num-layers", config.num_layers, "transformer layers");
  visit("hidden-size", config.hidden_size, "width of the residual stream");
  visit("ffn-hidden-size", config.ffn_hidden_size, "SwiGLU width");
  visit("num-attention-heads", config.num_attention_heads, "query heads");
  visit("num-query-groups", config.num_query_groups, "key-value heads; 0: one per query head");
  visit("kv-channels", config.kv_channels, "head dim; 0: hidden-size / num-attention-heads");
  visit("vocab-size", config.vocab_size, "tokens; 0: the tokenizer's");
  visit("make-vocab-size-divisible-by", config.make_vocab_size_divisible_by,
        "the embedding is padded to a multiple of this");
  visit("untie-embeddings-and-output-weights", config.untie_embeddings_and_output_weights,
        "give the head its own weights");
  visit("rotary-base", config.rotary_base, "RoPE base");
  visit("norm-epsilon", config.norm_epsilon, "RMSNorm epsilon");
  visit.group("Norm placement");
  visit("norm-scheme", config.norm_scheme, "named norm placement");
  visit("attention-norm", config.attention_norm, "norm before attention, in every layer");
  visit("attention-residual-normed", config.attention_residual_normed,
        "the attention residual carries the normed input");
  visit("ffn-norm", config.ffn_norm, "norm before the feed-forward, in every layer");
  visit("ffn-residual-normed", config.ffn_residual_normed,
        "the feed-forward residual carries the normed input");
  visit("qk-layernorm", config.qk_layernorm, "per-head RMSNorm of q and k");
  visit("v-layernorm", config.v_layernorm, "per-head RMSNorm of v");
  visit.group("Initialisation and loss");
  visit("init-method", config.init_method, "standard deviations of the linear layers");
  visit("init-method-std", config.init_method_std, "base deviation; 0: 1 / sqrt(2.5 hidden)");
  visit("z-loss-coeff", config.z_loss_coeff,
        "weight of logsumexp^2 in the objective (logs show it unweighted)");
  visit.group("PHD-Transformer");
  visit("phd", config.phd, "how copies of a token see each other");
  visit("phd-copies", config.phd_copies, "K: copies of every token, 1 = vanilla");
  visit("phd-window", config.phd_window, "W: hidden-copy window (swa, cswa)");
  visit("phd-chunk", config.phd_chunk, "C: chunk the window stays in (cswa)");
  visit("phd-window-unit", config.phd_window_unit, "unit of W and C");
  visit("phd-rope-position", config.phd_rope_position, "RoPE position of the copies");
  visit.group("Sparse attention (LongGen)");
  visit("sparse-pattern", config.sparse_pattern, "original keys seen by sparse layers; full: none");
  visit("sparse-full-layers", config.sparse_full_layers,
        "middle layers with full attention; 0: round(0.375 num-layers)");
  visit("sparse-block", config.sparse_block, "positions per block");
  visit("sparse-sink-blocks", config.sparse_sink_blocks, "sink-window: leading blocks kept");
  visit("sparse-window-blocks", config.sparse_window_blocks, "sink-window: recent blocks kept");
  visit("sparse-stride-blocks", config.sparse_stride_blocks, "strided: one block in this many");
  visit("sparse-local-blocks", config.sparse_local_blocks, "strided: recent blocks kept");
  visit.group("Mixture of experts");
  visit("num-experts", config.num_experts, "experts per layer; 0: dense");
  visit("moe-router-topk", config.moe_router_topk, "experts per token");
  visit("moe-ffn-hidden-size", config.moe_ffn_hidden_size, "SwiGLU width of one expert");
  visit("moe-aux-loss-coeff", config.moe_aux_loss_coeff, "weight of the load-balance loss");
  visit("moe-z-loss-coeff", config.moe_z_loss_coeff, "weight of the router's z-loss");
}

}  // namespace phalanx
