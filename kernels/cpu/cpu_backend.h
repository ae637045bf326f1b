// CpuBackend: the readable reference. One file per op family beside this header; OpenMP inside.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/matmul.h"

namespace phalanx {

/// Runs every op on the calling thread plus OpenMP workers. Owns the cache of matrix-product
/// primitives and one workspace per thread; both stop growing after the first step.
class CpuBackend final : public Backend {
 public:
  /// `num_threads` 0 means OpenMP's default.
  explicit CpuBackend(int num_threads = 0);
  ~CpuBackend() override;

  Device device() const override { return Device::cpu; }
  std::shared_ptr<void> allocate(int64_t bytes) override;
  void synchronize() override {}

 private:
  void upload_impl(const Tensor& target, const void* source) override;
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

  /// Memory for partial sums of `count` values, kept between calls; contents are undefined.
  template <class T>
  T* workspace(int64_t count) {
    const auto bytes = static_cast<size_t>(count) * sizeof(T);
    if (workspace_.size() < bytes) workspace_.resize(bytes);
    return reinterpret_cast<T*>(workspace_.data());
  }

  int num_threads_;
  MatmulEngine matmul_;
  std::vector<std::byte> workspace_;
};

}  // namespace phalanx
