// CudaBackend: every op on one GPU, in the order of the calls, on one stream. One file per op
// family beside this header, named as in kernels/cpu.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "kernels/backend.h"
#include "kernels/cuda/device_block.h"
#include "kernels/cuda/host_staging.h"

namespace phalanx {

/// Number of GPUs that this process can use; 0 without a driver. Never throws.
int cuda_device_count();

/// Runs every op on GPU `device_index`. Ops return as soon as they are queued; only `download` and
/// `synchronize` wait, and `upload` while all of its staging memory is on its way. One thread
/// calls.
class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int device_index);
  ~CudaBackend() override;

  Device device() const override { return Device::cuda; }
  DeviceInfo info() const override;
  std::shared_ptr<void> allocate(int64_t bytes) override;
  void reserve(int64_t bytes) override;
  void synchronize() override;
  std::unique_ptr<RecordedOps> record(const std::function<void()>& hand_in) override;
  std::unique_ptr<DeviceClock> device_clock() override;

  /// Where the ops run. Others order their work against it with events.
  cudaStream_t stream() const { return stream_; }

 private:
  /// Scratch of the running op: at most workspace_bytes(Device::cuda), free for the next op (same
  /// stream).
  void* workspace(int64_t bytes);

  void upload_impl(const Tensor& target, const void* source) override;
  void upload_early_impl(const Tensor& target, const void* source) override;
  void upload_columns_impl(const Tensor& target, int64_t column, int64_t columns,
                           const void* source) override;
  void download_impl(void* target, const Tensor& source) override;
  void zero_impl(const Tensor& y) override;
  void copy_impl(const Tensor& y, const Tensor& x) override;
  void add_impl(const Tensor& y, const Tensor& a, const Tensor& b) override;
  void scale_impl(const Tensor& y, double factor) override;
  void fill_impl(const Tensor& y, double value) override;
  void truncated_normal_impl(const Tensor& w, const TruncatedNormal& options) override;
  void matmul_impl(const Tensor& c, const Tensor& a, const Tensor& b,
                   const MatmulOptions& options) override;
  void embedding_forward_impl(const Tensor& y, const Tensor& table, const Tensor& ids,
                              int64_t vocab_begin) override;
  void embedding_backward_impl(const Tensor& dtable, const Tensor& dy, const Tensor& ids,
                               int64_t vocab_begin) override;
  void select_copy_impl(const Tensor& y, const Tensor& x, int64_t copy) override;
  void accumulate_copy_impl(const Tensor& dx, const Tensor& dy, int64_t copy) override;
  void gather_positions_impl(const Tensor& y, const Tensor& x,
                             std::span<const PositionRange> runs) override;
  void accumulate_positions_impl(const Tensor& y, const Tensor& x,
                                 std::span<const PositionRange> runs) override;
  void rms_norm_forward_impl(const Tensor& y, const Tensor& rstd, const Tensor& x,
                             const Tensor& weight, double epsilon) override;
  void add_rms_norm_forward_impl(const AddRmsNorm& arguments) override;
  void rms_norm_backward_impl(const RmsNormBackward& arguments) override;
  void rope_table_impl(const Tensor& table, double base) override;
  void row_sum_squares_impl(const Tensor& sums, const Tensor& x, int64_t column,
                            int64_t width) override;
  void split_heads_forward_impl(const Tensor& y, const Tensor& x,
                                const SplitHeads& options) override;
  void split_heads_row_dots_impl(const Tensor& dots, const Tensor& dy, const Tensor& x,
                                 const SplitHeads& options) override;
  void split_heads_backward_impl(const SplitHeadsBackward& arguments,
                                 const SplitHeads& options) override;
  void attention_forward_impl(const Tensor& out, const Tensor& lse,
                              const AttentionInputs& inputs) override;
  void attention_backward_impl(const AttentionBackward& arguments,
                               const AttentionInputs& inputs) override;
  void attention_merge_impl(const Tensor& out, const Tensor& lse, const Tensor& part,
                            const Tensor& part_lse) override;
  void swiglu_forward_impl(const Tensor& act, const Tensor& gate_up) override;
  void swiglu_backward_impl(const Tensor& dgate_up, const Tensor& dact,
                            const Tensor& gate_up) override;
  void cross_entropy_forward_impl(const Tensor& stats, const Tensor& logits,
                                  const CrossEntropyOptions& options) override;
  void cross_entropy_merge_impl(const Tensor& stats, const Tensor& parts) override;
  void cross_entropy_backward_impl(const Tensor& logits, const Tensor& stats,
                                   const CrossEntropyOptions& options) override;
  void cross_entropy_loss_impl(const Tensor& sums, const Tensor& stats,
                               const CrossEntropyOptions& options) override;
  void router_forward_impl(const RouterOutputs& outputs, const Tensor& logits) override;
  void router_loss_impl(const Tensor& sums, const RouterOutputs& outputs,
                        const RouterLossFactors& factors) override;
  void router_backward_impl(const Tensor& dlogits, const Tensor& dweights,
                            const RouterOutputs& outputs,
                            const RouterLossFactors& factors) override;
  void sort_by_expert_impl(const Tensor& places, const Tensor& counts,
                           const Tensor& experts) override;
  void permute_rows_impl(const Tensor& y, const Tensor& x, const Tensor& places) override;
  void combine_rows_impl(const Tensor& y, const Tensor& x, const Tensor& places,
                         const Tensor& added) override;
  void scale_rows_impl(const Tensor& y, const Tensor& x, const Tensor& factors) override;
  void row_dots_impl(const Tensor& dots, const Tensor& a, const Tensor& b) override;
  void grouped_matmul_impl(const Tensor& c, const Tensor& a, const Tensor& b,
                           const GroupedMatmul& options) override;
  void adamw_step_impl(const AdamWTensors& tensors, const AdamWOptions& options) override;
  void add_sum_squares_impl(const Tensor& sum, const Tensor& x) override;

  struct MatmulCache;  // matrix products: handle, descriptors and chosen algorithms

  int device_index_;
  cudaStream_t stream_ = nullptr;
  cudaStream_t copy_stream_ = nullptr;    // of early uploads
  cudaEvent_t early_uploaded_ = nullptr;  // the latest of them is done
  std::unique_ptr<HostStaging> staging_;
  std::shared_ptr<DeviceBlock> block_;  // absent until `reserve`
  int num_multiprocessors_ = 1;
  std::shared_ptr<void> workspace_;
  std::shared_ptr<MatmulCache> matmuls_;  // shared, because its type is known to matmul.cpp only
};

}  // namespace phalanx
