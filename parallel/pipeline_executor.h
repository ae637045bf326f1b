// Runs a schedule over one rank's chunks of the layers, sending activations while others are
// computed.
#pragma once

#include <memory>
#include <vector>

#include "kernels/base/tensor.h"
#include "parallel/pipeline_schedule.h"
#include "parallel/process_group.h"

namespace phalanx {

/// One rank's chunks of the layers. What passes between chunks is [S_local, B, K, H]: activations
/// forwards, their gradients backwards. At the model's two ends it is absent: the first chunk reads
/// its micro-batch itself, the last computes the loss itself.
class PipelineStage {
 public:
  virtual ~PipelineStage() = default;
  /// Where the output of the chunk before arrives for this forward, and the gradient from the next
  /// chunk for this backward. Asked for once per action, in the order the chunk runs them and at
  /// most one action early: before it has run, a receive for the chunk's next one may start. Hence
  /// two buffers in turn per chunk and direction are enough.
  virtual Tensor forward_buffer(int64_t micro_batch, int64_t chunk) = 0;
  virtual Tensor backward_buffer(int64_t micro_batch, int64_t chunk) = 0;
  /// What goes to the next chunk; valid until the second next forward of this chunk starts.
  virtual Tensor forward(const PipelineAction& action) = 0;
  /// backward or backward_input: what goes to the chunk before; valid until the second next
  /// backward of this chunk starts. `last`: no later action of this list adds to gradients of the
  /// chunk's parameters.
  virtual Tensor backward(const PipelineAction& action, bool last) = 0;
  virtual void backward_weight(const PipelineAction& action, bool last) = 0;
};

/// Executes one rank's list of actions, once per step; the ranks of `pp` each have their own, made
/// for the same `num_chunks`. Keeps what a run needs, so that later runs of one rank alone allocate
/// nothing. Used on the rank's thread.
class PipelineExecutor {
 public:
  PipelineExecutor(std::vector<PipelineAction> actions, ProcessGroup& pp, int64_t num_chunks);
  ~PipelineExecutor();
  PipelineExecutor(PipelineExecutor&& other) noexcept;
  PipelineExecutor& operator=(PipelineExecutor&& other) noexcept;

  const std::vector<PipelineAction>& actions() const;
  /// All messages have been sent and received when it returns. Traffic on `pp`: one exchange per
  /// message sent and one per message received; the bytes of each tensor sent to another rank.
  /// What the stage throws comes out; messages under way are then dropped, which ends the peers.
  void run(PipelineStage& stage);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Executes `actions` once.
void run_pipeline(const std::vector<PipelineAction>& actions, PipelineStage& stage,
                  ProcessGroup& pp, int64_t num_chunks);

}  // namespace phalanx
