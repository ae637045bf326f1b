// PhdStage: this rank's layers of a PHD-Transformer, with embedding at the first stage and loss at
// the last.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "core/model/model_config.h"
#include "core/model/transformer_layer.h"
#include "data/micro_batch.h"
#include "parallel/gradient_buffer.h"
#include "parallel/pipeline_executor.h"
#include "parallel/process_groups.h"
#include "parallel/vocab_parallel.h"

namespace phalanx {

/// Sizes that fix every activation.
struct StageShape {
  int64_t positions = 0;  // S
  int64_t sequences = 0;  // B, micro-batch size
  bool operator==(const StageShape&) const = default;
};

/// Sums over the loss tokens this rank has seen since `begin_step`.
struct LossSums {
  double cross_entropy = 0;
  double z = 0;  // sum of logsumexp^2, without its coefficient
};

class PhdStage final : public PipelineStage {
 public:
  /// Registers every weight in `parameters`; takes no memory.
  PhdStage(const ModelConfig& config, ParameterStore& parameters, Backend& backend,
           ProcessGroups& groups, SequenceParallel sequence_parallel = SequenceParallel::off);
  ~PhdStage() override;

  /// Bytes the activations need for `slots` micro-batches in flight: one forward and backward on
  /// measuring arenas.
  struct MemoryPlan {
    int64_t saved_bytes_per_slot = 0;
    int64_t scratch_bytes = 0;
    int64_t fixed_bytes = 0;                               // RoPE table, ids, loss sums
    std::vector<std::pair<std::string, int64_t>> largest;  // at the peak, largest first
  };
  MemoryPlan plan_memory(const StageShape& shape, DType dtype);
  /// Takes the activations' memory. Call once before training or evaluating.
  void allocate(const StageShape& shape, DType dtype, int64_t slots);

  /// The step's micro-batches (kept by the caller until the step ends) and the number of loss
  /// tokens of the global batch. `gradients` is told when parameters are final.
  void begin_step(const std::vector<MicroBatch>& micro_batches, int64_t loss_tokens,
                  GradientBuffer& gradients);
  void forward(const PipelineAction& action, const Tensor& input, const Tensor& output) override;
  void backward(const PipelineAction& action, const Tensor& dinput, const Tensor& doutput,
                bool last) override;
  /// Local sums over all micro-batches of the step so far.
  LossSums loss_sums();

  /// Forward only, for evaluation: adds to nothing, keeps nothing.
  LossSums evaluate(const MicroBatch& micro_batch);
  /// Logits of the last copy at `position` of each sequence: [B, V padded] on the host as f32
  /// (generation; through the same forward as training).
  std::vector<float> last_copy_logits(const MicroBatch& micro_batch, int64_t position);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx
