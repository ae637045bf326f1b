// The SwiGLU feed-forward.
#include "core/model/mlp.h"

namespace phalanx {

Mlp::Mlp(const LayerContext& context)
    : ops_(context.parallel.backend),
      row_factor_(context.parallel.row_factor()),
      gate_up_(context.parallel,
               {{context.name("mlp.gate.weight"), context.config.ffn_hidden_size},
                {context.name("mlp.up.weight"), context.config.ffn_hidden_size}},
               {.in_features = context.config.hidden_size,
                .kind = ParameterKind::feed_forward,
                .initialiser = {.stddev = base_init_std(context.config)}}),
      down_(context.parallel, context.name("mlp.down.weight"),
            {.in_features = context.config.ffn_hidden_size,
             .out_features = context.config.hidden_size,
             .kind = ParameterKind::feed_forward,
             .initialiser = {.stddev = output_init_std(context.config, context.layer)}}) {}

// y = down(silu(gate(x)) * up(x))
void Mlp::forward(const Tensor& y, const Tensor& x, Saved& saved, Memory& memory) const {
  const int64_t rows = x.shape.rows() * row_factor_;
  const int64_t width = gate_up_.local_out_features(gate_up_.all_parts());
  saved.gate_up = memory.saved.tensor("mlp.gate_up", {rows, width}, x.dtype);
  gate_up_.forward(saved.gate_up, x.as_matrix(), saved.gate_up_linear, memory,
                   gate_up_.all_parts());
  const Tensor act = memory.saved.tensor("mlp.act", {rows, width / 2}, x.dtype);
  ops_.swiglu_forward(act, saved.gate_up);
  down_.forward(y.as_matrix(), act, saved.down_linear, memory);
}

void Mlp::backward(const Tensor& dx, const Tensor& dy, const Saved& saved, Memory& memory) {
  const ArenaScope scope(memory.scratch);
  const Tensor dact = memory.scratch.tensor(
      "mlp.dact", saved.gate_up.shape.with_last(saved.gate_up.shape.back() / 2), dy.dtype);
  down_.backward(dact, dy.as_matrix(), saved.down_linear, memory);
  const Tensor dgate_up = memory.scratch.tensor("mlp.dgate_up", saved.gate_up.shape, dy.dtype);
  ops_.swiglu_backward(dgate_up, dact, saved.gate_up);
  gate_up_.backward(dx.as_matrix(), dgate_up, saved.gate_up_linear, memory, gate_up_.all_parts());
}

}  // namespace phalanx
