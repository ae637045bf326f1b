// ModelChunk: consecutive layers of one virtual pipeline stage, with the embedding at the model's
// begin and the loss at its end.
#pragma once

#include <optional>
#include <vector>

#include "core/model/rms_norm.h"
#include "core/model/stage_options.h"
#include "core/model/transformer_layer.h"
#include "parallel/gradient_buffer.h"
#include "parallel/vocab_parallel.h"

namespace phalanx {

/// What one micro-batch in flight keeps between its forward and its backward.
struct ChunkState {
  Arena arena;
  SequenceInputs inputs;
  Tensor ids;      // [S/cp, B]
  Tensor targets;  // [S/cp * B]
  Tensor input;    // [S/cp(/tp), B, copies, H]: from the chunk before, or the embedding
  std::vector<Tensor> layer_inputs;
  std::vector<TransformerLayer::Saved> layers;
  RmsNorm::Saved final_norm;
  Tensor dhidden;         // [S/cp(/tp), B, H]: the loss computes its gradient at once
  DeferredWork deferred;  // weight gradients of a split backward
};

/// Memory that lasts as long as one forward or backward.
struct ChunkScratch {
  Arena& scratch;
  Arena& recomputed;  // what a layer saves, while its backward runs
};

/// Everything is collective over the groups of the context. One thread.
class ModelChunk {
 public:
  struct Context {
    const ModelConfig& config;
    ParameterStore& parameters;
    Backend& backend;
    ProcessGroups& groups;
    SequenceParallel sequence_parallel;
    Recompute recompute;
    ParameterUnits& units;  // told when layers run
  };
  /// `stage` of `num_stages` virtual ones. Registers its parameters; `tied_table` is the embedding
  /// where another chunk of this rank has it already, else null.
  struct Place {
    int64_t stage = 0;
    int64_t num_stages = 1;
    LayerRange layers;
    Parameter* tied_table = nullptr;
    int64_t first_unit = 0;  // number of its first layer among the rank's layers
  };
  ModelChunk(const Context& context, const Place& place);

  size_t num_layers() const { return layers_.size(); }
  /// Copies of a position that come in and go out: all, or the last one past the last layer.
  /// Parameters of each layer.
  std::vector<ParameterRange> units() const;
  void set_units(ParameterUnits& units) { units_ = &units; }
  int64_t input_copies() const { return input_copies_; }
  int64_t output_copies() const { return output_copies_; }
  bool is_first() const { return first_; }
  bool is_last() const { return last_; }
  /// The embedding table of this chunk, or null.
  Parameter* table() { return table_; }

  /// From state.input, or at the model's begin from state.ids, to `output` [S/cp(/tp), B, K, H].
  /// Not for the last chunk.
  void forward(ChunkState& state, const Tensor& output, const ChunkScratch& memory);
  /// Last chunk: what the head reads, [S/cp(/tp), B, H], in the state's arena.
  Tensor hidden(ChunkState& state, const ChunkScratch& memory);
  /// Last chunk: forward and loss; sums [2] f64 as VocabParallelLoss.
  void forward_loss(ChunkState& state, const Tensor& sums, const ChunkScratch& memory);
  /// The same, and the loss's gradient into state.dhidden.
  void forward_loss_gradient(ChunkState& state, const Tensor& sums,
                             const VocabParallelLoss::Scales& scales, const ChunkScratch& memory);
  /// Gradients of one micro-batch. dinput, doutput as input and output; absent at the model's ends.
  struct Gradients {
    Tensor dinput, doutput;
    bool split = false;                // weight gradients wait in state.deferred
    GradientBuffer* finals = nullptr;  // told what is final, in the last backward of a step
  };
  void backward(ChunkState& state, const Gradients& gradients, const ChunkScratch& memory);
  /// The weight half of a split backward.
  void backward_weight(ChunkState& state, GradientBuffer* finals, const ChunkScratch& memory);
  /// logits [rows, V padded / tp] acc of rows of hidden().
  void logits(const Tensor& logits, const Tensor& rows) const { loss_->logits(logits, rows); }

 private:
  Tensor run_layers(ChunkState& state, const Tensor& output, const ChunkScratch& memory);
  void layer_backward(size_t index, const Tensor& dx, const Tensor& dy, ChunkState& state,
                      Memory memory, const ChunkScratch& arenas);
  Tensor embed(ChunkState& state, Memory& memory);
  void register_head(const TensorParallelContext& context, Parameter* tied_table);

  const ModelConfig& config_;
  ParameterStore& parameters_;
  Backend& ops_;
  ProcessGroups& groups_;
  int64_t row_factor_;  // rows inside tensor-parallel regions per row outside
  Recompute recompute_;
  bool first_;
  bool last_;
  int64_t input_copies_;
  int64_t output_copies_;
  int64_t first_parameter_;
  int64_t first_unit_;
  ParameterUnits* units_;
  Parameter* table_ = nullptr;
  std::optional<VocabParallelEmbedding> embedding_;
  std::vector<TransformerLayer> layers_;
  std::optional<RmsNorm> final_norm_;
  int64_t end_of_layers_ = 0;  // first parameter after the layers
  std::optional<VocabParallelLoss> loss_;
};

}  // namespace phalanx
