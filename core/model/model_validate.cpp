// Which ModelConfigs make no model: every problem at once, each with option, value and what to use.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/model/model_config.h"
#include "core/model/problems.h"

namespace phalanx {
namespace {

bool positive(Problems& problems, std::string_view option, double value, double suggestion) {
  if (std::isfinite(value) && value > 0) return true;
  report(problems, "{} {} must be a positive number; try {}", option, value, suggestion);
  return false;
}

int64_t nearest_divisor(int64_t number, int64_t wanted) {
  for (int64_t distance = 1; distance < number; ++distance) {
    if (wanted > distance && number % (wanted - distance) == 0) return wanted - distance;
    if (number % (wanted + distance) == 0) return wanted + distance;
  }
  return 1;
}

int64_t nearest_multiple(int64_t value, int64_t step) {
  return std::max(step, (value + step / 2) / step * step);
}

void validate_heads(Problems& problems, const ModelConfig& c) {
  const size_t before = problems.size();
  at_least(problems, "hidden-size", c.hidden_size, 1);
  at_least(problems, "num-attention-heads", c.num_attention_heads, 1);
  at_least(problems, "num-query-groups", c.num_query_groups, 0);
  at_least(problems, "kv-channels", c.kv_channels, 0);
  if (problems.size() > before) return;  // the checks below divide by them
  if (c.kv_channels == 0 && c.hidden_size % c.num_attention_heads != 0) {
    report(problems,
           "hidden-size {} is not divisible by num-attention-heads {}; try hidden-size {} or "
           "num-attention-heads {}",
           c.hidden_size, c.num_attention_heads,
           nearest_multiple(c.hidden_size, c.num_attention_heads),
           nearest_divisor(c.hidden_size, c.num_attention_heads));
  } else if (c.head_dim() % 2 != 0) {
    report(problems,
           "head dim {} ({}) is odd, and RoPE turns pairs of channels; try kv-channels {}",
           c.head_dim(), c.kv_channels > 0 ? "kv-channels" : "hidden-size / num-attention-heads",
           c.head_dim() + 1);
  }
  if (c.num_attention_heads % c.query_groups() != 0)
    report(problems, "num-query-groups {} does not divide num-attention-heads {}; try {}",
           c.query_groups(), c.num_attention_heads,
           nearest_divisor(c.num_attention_heads, c.query_groups()));
}

void validate_phd(Problems& problems, const ModelConfig& c, int64_t seq_length) {
  at_least(problems, "phd-copies", c.phd_copies, 1);
  at_least(problems, "phd-window", c.phd_window, 1);
  const bool chunk_ok = at_least(problems, "phd-chunk", c.phd_chunk, 1);
  // A chunk cut short by the end of the sequence would see less context than any chunk at
  // inference.
  if (c.phd != PhdMode::cswa || c.phd_copies < 2 || !chunk_ok || seq_length < 1) return;
  const int64_t tokens = c.phd_window_unit == WindowUnit::positions ? 1 : c.phd_copies - 1;
  if (seq_length * tokens % c.phd_chunk != 0)
    report(problems,
           "seq-length {} is not divisible by phd-chunk {}{}; try seq-length {} or phd-chunk {}",
           seq_length, c.phd_chunk, tokens > 1 ? " (in hidden tokens)" : "",
           nearest_multiple(seq_length, c.phd_chunk),
           nearest_divisor(seq_length * tokens, c.phd_chunk));
}

void validate_norms(Problems& problems, const ModelConfig& c) {
  // The schemes without a norm there: nothing could be carried.
  const bool scheme_has_none =
      c.attention_norm == Override::automatic &&
      (c.norm_scheme == NormScheme::hybrid_norm || c.norm_scheme == NormScheme::olmo2);
  if (scheme_has_none && c.attention_residual_normed == Override::on)
    report(problems,
           "attention-residual-normed on needs a norm, and norm-scheme {} has none before "
           "attention; set attention-norm on or attention-residual-normed off",
           enum_name(c.norm_scheme));
  if (c.attention_norm == Override::off && c.attention_residual_normed == Override::on)
    report(problems,
           "attention-residual-normed on needs the norm that attention-norm off takes away; set "
           "attention-norm on or attention-residual-normed off");
  if (c.ffn_norm == Override::off && c.ffn_residual_normed == Override::on)
    report(problems,
           "ffn-residual-normed on needs the norm that ffn-norm off takes away; set ffn-norm on or "
           "ffn-residual-normed off");
}

void validate_sparse(Problems& problems, const ModelConfig& c) {
  if (c.sparse_full_layers < 0 || c.sparse_full_layers > c.num_layers)
    report(problems, "sparse-full-layers {} is not between 0 and num-layers {}; try {}",
           c.sparse_full_layers, c.num_layers,
           std::clamp<int64_t>(c.sparse_full_layers, 0, std::max<int64_t>(0, c.num_layers)));
  at_least(problems, "sparse-block", c.sparse_block, 1);
  at_least(problems, "sparse-sink-blocks", c.sparse_sink_blocks, 0);
  at_least(problems, "sparse-window-blocks", c.sparse_window_blocks, 1);
  at_least(problems, "sparse-stride-blocks", c.sparse_stride_blocks, 1);
  at_least(problems, "sparse-local-blocks", c.sparse_local_blocks, 1);
}

void validate_expert_sizes(Problems& problems, const ModelConfig& c) {
  if (!at_least(problems, "num-experts", c.num_experts, 0) || c.num_experts == 0) return;
  at_least(problems, "moe-ffn-hidden-size", c.moe_ffn_hidden_size, 1);
  if (c.moe_router_topk < 1 || c.moe_router_topk > c.num_experts)
    report(problems, "moe-router-topk {} is not between 1 and num-experts {}; try {}",
           c.moe_router_topk, c.num_experts,
           std::clamp<int64_t>(c.moe_router_topk, 1, c.num_experts));
}

}  // namespace

std::vector<std::string> validate(const ModelConfig& config, int64_t seq_length) {
  Problems problems;
  at_least(problems, "num-layers", config.num_layers, 1);
  at_least(problems, "ffn-hidden-size", config.ffn_hidden_size, 1);
  at_least(problems, "vocab-size", config.vocab_size, 0);
  at_least(problems, "make-vocab-size-divisible-by", config.make_vocab_size_divisible_by, 1);
  at_least(problems, "seq-length", seq_length, 1);
  positive(problems, "rotary-base", config.rotary_base, 500000);
  positive(problems, "norm-epsilon", config.norm_epsilon, 1e-5);
  if (!std::isfinite(config.init_method_std) || config.init_method_std < 0)
    report(problems, "init-method-std {} is negative; the smallest value is 0 (automatic)",
           config.init_method_std);
  if (!std::isfinite(config.z_loss_coeff) || config.z_loss_coeff < 0)
    report(problems, "z-loss-coeff {} is negative; the smallest value is 0 (off)",
           config.z_loss_coeff);
  validate_heads(problems, config);
  validate_norms(problems, config);
  validate_phd(problems, config, seq_length);
  validate_sparse(problems, config);
  validate_expert_sizes(problems, config);
  return problems;
}

std::vector<std::string> validate_experts(const ModelConfig& config,
                                          const ParallelConfig& parallel) {
  Problems problems;
  const int64_t ep = parallel.expert_model_parallel_size;
  const int64_t expert_tp = parallel.expert_tensor_parallel_size;
  if (config.num_experts <= 0) {
    if (ep > 1 || expert_tp > 1)
      report(problems,
             "expert-model-parallel-size {} and expert-tensor-parallel-size {} share out experts, "
             "and num-experts is {}; use 1 and 1, or give the model experts",
             ep, expert_tp, config.num_experts);
    return problems;
  }
  // Proposals divide the size that was asked for: they fit the mesh wherever that did.
  if (ep >= 1 && config.num_experts % ep != 0)
    report(problems, "expert-model-parallel-size {} does not divide num-experts {}; try {}", ep,
           config.num_experts, std::gcd(config.num_experts, ep));
  if (expert_tp >= 1 && config.moe_ffn_hidden_size >= 1 &&
      config.moe_ffn_hidden_size % expert_tp != 0)
    report(problems,
           "expert-tensor-parallel-size {} does not divide moe-ffn-hidden-size {}; try {}",
           expert_tp, config.moe_ffn_hidden_size, std::gcd(config.moe_ffn_hidden_size, expert_tp));
  // Without it all tp ranks hold the same rows, and every expert would get each of them tp times.
  if (parallel.tensor_model_parallel_size > 1 && !parallel.sequence_parallel)
    report(problems,
           "tensor-model-parallel-size {} with experts needs sequence-parallel; add "
           "--sequence-parallel or use tensor-model-parallel-size 1",
           parallel.tensor_model_parallel_size);
  return problems;
}

}  // namespace phalanx
