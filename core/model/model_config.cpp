// What a ModelConfig means, layer by layer: norm placement, attention mask, initialisation, and
// which values make no model.
#include "core/model/model_config.h"

#include <algorithm>
#include <cmath>

namespace phalanx {
namespace {

// HybridNorm, section 3 and appendix: every named placement as a setting of the switches.
NormPlacement scheme_placement(const ModelConfig& config, int64_t layer) {
  const bool first = layer == 0;
  const NormPlacement qk{.q_norm = HeadNorm::per_head, .k_norm = HeadNorm::per_head};
  NormPlacement hybrid{.attention_norm = false,
                       .feed_forward_residual_normed = true,
                       .q_norm = HeadNorm::per_head,
                       .k_norm = HeadNorm::per_head,
                       .v_norm = HeadNorm::per_head};
  NormPlacement hybrid_star = hybrid;
  if (first) hybrid_star.attention_norm = true;
  if (first) hybrid_star.feed_forward_residual_normed = false;
  switch (config.norm_scheme) {
    case NormScheme::pre_norm:
      return {};
    case NormScheme::post_norm:
      // Norm(FFN(y) + y) of layer l is taken by layer l + 1 (by the final norm after the last), so
      // all switches are on and the first layer takes the embedding as it is.
      return {.attention_norm = !first,
              .attention_residual_normed = !first,
              .feed_forward_residual_normed = true};
    case NormScheme::pre_qk_norm:
      return qk;
    case NormScheme::hybrid_norm:
      return hybrid;
    case NormScheme::hybrid_norm_star:
      return hybrid_star;
    case NormScheme::pre_post:
      return {.feed_forward_residual_normed = true};
    case NormScheme::post_pre:
      return {.attention_residual_normed = true};
    case NormScheme::hybrid_norm_7b:
      hybrid_star.attention_output_norm = true;
      hybrid_star.attention_output_norm_weight =
          1.0 / std::sqrt(2.0 * static_cast<double>(config.num_layers));
      return hybrid_star;
    case NormScheme::olmo2:
      return {.attention_norm = false,
              .feed_forward_norm = false,
              .q_norm = HeadNorm::full_width,
              .k_norm = HeadNorm::full_width,
              .attention_output_norm = true,
              .feed_forward_output_norm = true};
  }
  fail("norm-scheme ", static_cast<int>(config.norm_scheme), " has no placement");
}

void override_switch(bool& value, Override choice) {
  if (choice != Override::automatic) value = choice == Override::on;
}

void override_head_norm(HeadNorm& value, Override choice) {
  if (choice == Override::on) value = HeadNorm::per_head;
  if (choice == Override::off) value = HeadNorm::none;
}

bool is_full_layer(const ModelConfig& config, int64_t layer) {
  // LongGen: 12 of 32 layers stay full, the middle ones.
  const int64_t full =
      config.sparse_full_layers > 0
          ? config.sparse_full_layers
          : static_cast<int64_t>(std::llround(0.375 * static_cast<double>(config.num_layers)));
  const int64_t begin = (config.num_layers - full) / 2;
  return layer >= begin && layer < begin + full;
}

}  // namespace

NormPlacement norm_placement(const ModelConfig& config, int64_t layer) {
  NormPlacement placement = scheme_placement(config, layer);
  override_switch(placement.attention_norm, config.attention_norm);
  override_switch(placement.attention_residual_normed, config.attention_residual_normed);
  override_switch(placement.feed_forward_norm, config.ffn_norm);
  override_switch(placement.feed_forward_residual_normed, config.ffn_residual_normed);
  override_head_norm(placement.q_norm, config.qk_layernorm);
  override_head_norm(placement.k_norm, config.qk_layernorm);
  override_head_norm(placement.v_norm, config.v_layernorm);
  return placement;
}

AttentionMask attention_mask(const ModelConfig& config, int64_t layer) {
  AttentionMask mask;
  mask.copies = config.phd_copies;
  mask.unit = config.phd_window_unit;
  if (config.phd == PhdMode::naive) mask.visibility = CopyVisibility::naive;
  if (config.phd == PhdMode::swa || config.phd == PhdMode::cswa) mask.window = config.phd_window;
  if (config.phd == PhdMode::cswa) mask.chunk = config.phd_chunk;
  if (config.sparse_pattern == KeyPattern::full || is_full_layer(config, layer)) return mask;
  mask.pattern = config.sparse_pattern;
  mask.block = config.sparse_block;
  mask.sink_blocks = config.sparse_sink_blocks;
  mask.window_blocks = config.sparse_window_blocks;
  mask.stride_blocks = config.sparse_stride_blocks;
  mask.local_blocks = config.sparse_local_blocks;
  return mask;
}

double base_init_std(const ModelConfig& config) {
  if (config.init_method_std > 0) return config.init_method_std;
  return 1.0 / std::sqrt(2.5 * static_cast<double>(config.hidden_size));
}

double output_init_std(const ModelConfig& config, int64_t layer) {
  const double base = base_init_std(config);
  switch (config.init_method) {
    case InitScheme::normal:
      return base;
    case InitScheme::depth_scaled:
      return base / std::sqrt(2.0 * static_cast<double>(layer + 1));
    case InitScheme::megatron:
      return base / std::sqrt(2.0 * static_cast<double>(config.num_layers));
  }
  fail("init-method ", static_cast<int>(config.init_method), " has no standard deviation");
}

}  // namespace phalanx
