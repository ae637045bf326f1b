// PhdStage: this pipeline rank's chunks of a PHD-Transformer, the memory of their micro-batches in
// flight, and what passes between stages.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/model/loss_sums.h"
#include "core/model/sequence_loader.h"
#include "core/model/stage_options.h"
#include "data/micro_batch.h"
#include "parallel/gradient_buffer.h"
#include "parallel/pipeline_executor.h"
#include "parallel/process_groups.h"

namespace phalanx {

/// Micro-batches in flight, and of a step.
struct StageSlots {
  std::vector<int64_t> per_chunk{1};
  int64_t micro_batches = 1;
  bool split_backward = false;  // weight gradients wait for an action of their own
};
/// What a schedule of `num_chunks` chunks needs.
StageSlots slots_of(const std::vector<PipelineAction>& schedule, int64_t num_chunks);

class PhdStage final : public PipelineStage {
 public:
  /// Registers every weight of this rank in `parameters`; takes no memory.
  PhdStage(const ModelConfig& config, ParameterStore& parameters, Backend& backend,
           ProcessGroups& groups, const StageOptions& options = {});
  ~PhdStage() override;

  int64_t num_chunks() const;
  /// Parameters of each layer of this rank, for sharding them one by one.
  std::vector<ParameterRange> units() const;
  /// Who is told when layers run; without a call, all weights are always present.
  void set_units(ParameterUnits& units);

  /// Bytes the activations need: one forward and backward of each chunk on measuring arenas.
  struct MemoryPlan {
    std::vector<int64_t> saved_bytes_per_slot;  // of each chunk
    int64_t scratch_bytes = 0;
    int64_t recomputed_bytes = 0;  // what one layer saves, while its backward runs
    int64_t fixed_bytes = 0;       // RoPE table, loss sums, what passes between stages
    int64_t batch_bytes = 0;       // ids and targets of a step
    std::vector<std::pair<std::string, int64_t>> largest;  // at the peak, largest first
  };
  MemoryPlan plan_memory(const StageShape& shape, DType dtype, const StageSlots& slots);
  /// Takes the activations' memory. Call once before training or evaluating.
  void allocate(const StageShape& shape, DType dtype, const StageSlots& slots = {});
  /// From now on the work of a training micro-batch is recorded and replayed (one stage, one chunk,
  /// one micro-batch in flight, no messages in it). The last of a step only where `last` says so,
  /// because reductions cannot run beside a backward that is replayed as a whole.
  enum class ReplayLast : uint8_t { no, yes };
  void replay_micro_batches(ReplayLast last);
  /// Most bytes that micro-batches of any chunk have taken in one slot so far.
  int64_t peak_saved_bytes() const;

  /// The step's micro-batches (kept by the caller until the step ends) and sizes of the whole
  /// global batch. `gradients` is told when parameters are final.
  struct StepSizes {
    int64_t loss_tokens = 0;
    int64_t micro_batches = 1;  // over all data-parallel ranks
  };
  void begin_step(std::span<const MicroBatch> micro_batches, const StepSizes& sizes,
                  GradientBuffer& gradients);
  Tensor forward_buffer(int64_t micro_batch, int64_t chunk) override;
  Tensor backward_buffer(int64_t micro_batch, int64_t chunk) override;
  Tensor forward(const PipelineAction& action) override;
  Tensor backward(const PipelineAction& action, bool last) override;
  void backward_weight(const PipelineAction& action, bool last) override;
  /// Local sums over all micro-batches of the step so far.
  LossSums loss_sums();

  /// Forward only, through the whole pipeline (collective): adds to nothing, keeps nothing.
  LossSums evaluate(const MicroBatch& micro_batch);
  /// Logits of the last copy at `position` of each sequence: [B, V padded] on the host as f32
  /// (generation; through the same forward as training). One stage, whole sequences.
  std::vector<float> last_copy_logits(const MicroBatch& micro_batch, int64_t position);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx
