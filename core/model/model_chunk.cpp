// A chunk of layers: forward above backward.
#include "core/model/model_chunk.h"

#include <cmath>
#include <utility>

namespace phalanx {
namespace {

// Logit rows per chunk of the loss: enough for full speed of the product, small against
// activations.
constexpr int64_t kLossChunkRows = 1024;

double head_init_std(const ModelConfig& config) {
  return config.init_method == InitScheme::megatron
             ? 1.0 / std::sqrt(static_cast<double>(config.hidden_size))
             : base_init_std(config);
}

/// The table of embedding or head. A tied one is held by both ends of the pipeline.
Parameter& add_table(const TensorParallelContext& context, const ModelConfig& config,
                     ParameterKind kind, bool on_two_stages) {
  ParameterSpec spec{.name = kind == ParameterKind::head ? "head.weight" : "embedding.weight",
                     .global_shape = {config.padded_vocab_size(), config.hidden_size},
                     .kind = kind,
                     .placement = Placement::sharded(MeshAxis::tp, 0)};
  spec.initialiser.stddev =
      kind == ParameterKind::head ? head_init_std(config) : base_init_std(config);
  if (on_two_stages) spec.placement.partial_gradient.add(MeshAxis::pp);
  return context.parameters.add(spec, context.tp.rank(), context.tp.size());
}

void tell_final(GradientBuffer* gradients, int64_t first_parameter) {
  if (gradients != nullptr) gradients->final_from(first_parameter);
}

}  // namespace

ModelChunk::ModelChunk(const Context& context, const Place& place)
    : config_(context.config),
      parameters_(context.parameters),
      ops_(context.backend),
      groups_(context.groups),
      recompute_(context.recompute),
      first_(place.stage == 0),
      last_(place.stage == place.num_stages - 1),
      input_copies_(place.layers.begin == config_.num_layers ? 1 : config_.copies()),
      output_copies_(place.layers.end == config_.num_layers ? 1 : config_.copies()),
      first_parameter_(context.parameters.size()),
      first_unit_(place.first_unit),
      units_(&context.units) {
  const TensorParallelContext parallel{parameters_, ops_, *groups_.tp, context.sequence_parallel};
  row_factor_ = parallel.row_factor();
  const bool tied = !config_.untie_embeddings_and_output_weights;
  if (first_) {
    table_ =
        &add_table(parallel, config_, ParameterKind::embedding, tied && groups_.pp->size() > 1);
    embedding_.emplace(parallel, *table_);
  }
  layers_.reserve(static_cast<size_t>(place.layers.end - place.layers.begin));
  for (int64_t layer = place.layers.begin; layer < place.layers.end; ++layer) {
    const bool last_layer = layer == config_.num_layers - 1;
    layers_.emplace_back(LayerContext{config_,
                                      layer,
                                      parallel,
                                      *groups_.cp,
                                      {.ep = *groups_.ep, .expert_tp = *groups_.expert_tp},
                                      recompute_},
                         last_layer ? QueryRows::last_copy : QueryRows::all_copies);
  }
  end_of_layers_ = parameters_.size();
  if (last_) register_head(parallel, first_ ? table_ : place.tied_table);
}

void ModelChunk::register_head(const TensorParallelContext& context, Parameter* tied_table) {
  final_norm_.emplace(context, "final_norm.weight",
                      RmsNorm::Init{.width = config_.hidden_size, .epsilon = config_.norm_epsilon});
  Parameter* head = tied_table;
  if (config_.untie_embeddings_and_output_weights)
    head = &add_table(context, config_, ParameterKind::head, false);
  else if (head == nullptr)
    head = table_ = &add_table(context, config_, ParameterKind::embedding, true);
  loss_.emplace(context, *head, config_.vocab_size, kLossChunkRows);
}

std::vector<ParameterRange> ModelChunk::units() const {
  std::vector<ParameterRange> list;
  for (const TransformerLayer& layer : layers_) {
    if (!list.empty()) list.back().last = layer.first_parameter();
    list.push_back({layer.first_parameter(), layer.first_parameter()});
  }
  if (!list.empty()) list.back().last = end_of_layers_;
  return list;
}

Tensor ModelChunk::embed(ChunkState& state, Memory& memory) {
  const Shape shape{state.inputs.positions / row_factor_, state.inputs.sequences, config_.copies(),
                    config_.hidden_size};
  const Tensor x = state.arena.tensor("embedding", shape, parameters_.dtype());
  embedding_->forward(x, state.ids, memory);
  return x;
}

// The last layer's output, in `output` if that is given.
Tensor ModelChunk::run_layers(ChunkState& state, const Tensor& output, const ChunkScratch& arenas) {
  const ArenaScope scope(arenas.scratch);
  Memory memory{state.arena, arenas.scratch};
  if (first_) state.input = embed(state, memory);
  Tensor x = state.input;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const bool to_output = output && i + 1 == layers_.size();
    const Tensor y =
        to_output ? output
                  : state.arena.tensor("layer.output", layers_[i].output_shape(x.shape), x.dtype);
    const ArenaScope recomputed_scope(arenas.recomputed);
    Memory layer_memory{recompute_ == Recompute::layer ? arenas.recomputed : state.arena,
                        arenas.scratch};
    state.layer_inputs[i] = x;
    const int64_t unit = first_unit_ + static_cast<int64_t>(i);
    units_->begin_forward(unit);
    layers_[i].forward(y, x, state.layers[i], layer_memory, state.inputs);
    units_->end_forward(unit);
    x = y;
  }
  return x;
}

void ModelChunk::forward(ChunkState& state, const Tensor& output, const ChunkScratch& memory) {
  const Tensor x = run_layers(state, output, memory);
  if (layers_.empty()) ops_.copy(output, x);
}

// [S, B, H]: the last copies after the last layer, normed.
Tensor ModelChunk::hidden(ChunkState& state, const ChunkScratch& arenas) {
  const Tensor x = run_layers(state, {}, arenas);
  const ArenaScope scope(arenas.scratch);
  Memory memory{state.arena, arenas.scratch};
  const Tensor normed =
      state.arena.tensor("final_norm", {x.shape[0], x.shape[1], x.shape.back()}, x.dtype);
  final_norm_->forward(normed, x, state.final_norm, memory);
  return normed;
}

void ModelChunk::forward_loss(ChunkState& state, const Tensor& sums, const ChunkScratch& arenas) {
  const Tensor h = hidden(state, arenas);
  const ArenaScope scope(arenas.scratch);
  Memory memory{state.arena, arenas.scratch};
  loss_->forward(h.as_matrix(), state.targets, sums, memory);
}

void ModelChunk::forward_loss_gradient(ChunkState& state, const Tensor& sums,
                                       const VocabParallelLoss::Scales& scales,
                                       const ChunkScratch& arenas) {
  const Tensor h = hidden(state, arenas);
  const ArenaScope scope(arenas.scratch);
  Memory memory{state.arena, arenas.scratch};
  state.dhidden = state.arena.tensor("dhidden", h.shape, h.dtype);
  loss_->forward_backward(state.dhidden.as_matrix(), h.as_matrix(), state.targets, sums, scales,
                          memory);
}

// With recomputation of layers only the layer's input was kept: what its forward saves is made
// again.
void ModelChunk::layer_backward(size_t index, const Tensor& dx, const Tensor& dy, ChunkState& state,
                                Memory memory, const ChunkScratch& arenas) {
  TransformerLayer& layer = layers_[index];
  if (recompute_ != Recompute::layer) {
    layer.backward(dx, dy, state.layers[index], memory, state.inputs);
    return;
  }
  const ArenaScope scope(arenas.scratch);
  const ArenaScope recomputed_scope(arenas.recomputed);
  const Tensor x = state.layer_inputs[index];
  Memory again{arenas.recomputed, arenas.scratch};
  const Tensor y =
      arenas.scratch.tensor("layer.output_again", layer.output_shape(x.shape), x.dtype);
  SequenceInputs inputs = state.inputs;
  inputs.router_loss.sums = {};  // counted by the first forward
  layer.forward(y, x, state.layers[index], again, inputs);
  layer.backward(dx, dy, state.layers[index], again, state.inputs);
}

void ModelChunk::backward(ChunkState& state, const Gradients& gradients,
                          const ChunkScratch& arenas) {
  const ArenaScope scope(arenas.scratch);
  Memory memory{state.arena, arenas.scratch, gradients.split ? &state.deferred : nullptr};
  GradientBuffer* finals = gradients.split ? nullptr : gradients.finals;
  const Shape& full = state.input.shape;
  // Two buffers in turn: a layer reads dy and uses it up, and writes dx.
  Tensor dx = arenas.scratch.tensor("dx", full, state.input.dtype);
  Tensor spare = arenas.scratch.tensor("dy", full, state.input.dtype);
  Tensor dy = gradients.doutput;
  if (last_) {
    dy = spare;
    dy.shape = full.with_dim(2, output_copies_);
    final_norm_->backward(dy, state.dhidden, state.final_norm);
    tell_final(finals, end_of_layers_);
  }
  for (size_t i = layers_.size(); i-- > 0;) {
    if (i == 0 && gradients.dinput) dx = gradients.dinput;
    const int64_t unit = first_unit_ + static_cast<int64_t>(i);
    units_->begin_backward(unit);
    layer_backward(i, dx, dy, state, memory, arenas);
    units_->end_backward(unit);
    tell_final(finals, layers_[i].first_parameter());
    dy = dx;
    std::swap(dx, spare);
  }
  if (layers_.empty() && gradients.dinput) ops_.copy(gradients.dinput, dy);
  if (first_) embedding_->backward(dy, state.ids, memory);
  tell_final(finals, first_parameter_);
}

void ModelChunk::backward_weight(ChunkState& state, GradientBuffer* finals,
                                 const ChunkScratch& arenas) {
  for (const auto& work : state.deferred) work(arenas.scratch);
  state.deferred.clear();
  tell_final(finals, first_parameter_);
}

}  // namespace phalanx
