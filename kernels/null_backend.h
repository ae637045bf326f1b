// NullBackend: lets every op through after its shape checks and does nothing. One step on measuring
// arenas with it tells the memory a run needs before any is taken.
#pragma once

#include "kernels/backend.h"

namespace phalanx {

class NullBackend final : public Backend {
 public:
  explicit NullBackend(Device device) : device_(device) {}

  Device device() const override { return device_; }
  std::shared_ptr<void> allocate(int64_t) override { return nullptr; }
  void synchronize() override {}

 private:
  void upload_impl(const Tensor&, const void*) override {}
  void upload_columns_impl(const Tensor&, int64_t, int64_t, const void*) override {}
  void download_impl(void*, const Tensor&) override {}
  void zero_impl(const Tensor&) override {}
  void copy_impl(const Tensor&, const Tensor&) override {}
  void add_impl(const Tensor&, const Tensor&, const Tensor&) override {}
  void scale_impl(const Tensor&, double) override {}
  void fill_impl(const Tensor&, double) override {}
  void truncated_normal_impl(const Tensor&, const TruncatedNormal&) override {}
  void matmul_impl(const Tensor&, const Tensor&, const Tensor&, const MatmulOptions&) override {}
  void embedding_forward_impl(const Tensor&, const Tensor&, const Tensor&, int64_t) override {}
  void embedding_backward_impl(const Tensor&, const Tensor&, const Tensor&, int64_t) override {}
  void select_copy_impl(const Tensor&, const Tensor&, int64_t) override {}
  void accumulate_copy_impl(const Tensor&, const Tensor&, int64_t) override {}
  void gather_positions_impl(const Tensor&, const Tensor&,
                             std::span<const PositionRange>) override {}
  void accumulate_positions_impl(const Tensor&, const Tensor&,
                                 std::span<const PositionRange>) override {}
  void rms_norm_forward_impl(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                             double) override {}
  void add_rms_norm_forward_impl(const AddRmsNorm&) override {}
  void rms_norm_backward_impl(const RmsNormBackward&) override {}
  void rope_table_impl(const Tensor&, double) override {}
  void row_sum_squares_impl(const Tensor&, const Tensor&, int64_t, int64_t) override {}
  void split_heads_forward_impl(const Tensor&, const Tensor&, const SplitHeads&) override {}
  void split_heads_row_dots_impl(const Tensor&, const Tensor&, const Tensor&,
                                 const SplitHeads&) override {}
  void split_heads_backward_impl(const SplitHeadsBackward&, const SplitHeads&) override {}
  void attention_forward_impl(const Tensor&, const Tensor&, const AttentionInputs&) override {}
  void attention_backward_impl(const AttentionBackward&, const AttentionInputs&) override {}
  void attention_merge_impl(const Tensor&, const Tensor&, const Tensor&, const Tensor&) override {}
  void swiglu_forward_impl(const Tensor&, const Tensor&) override {}
  void swiglu_backward_impl(const Tensor&, const Tensor&, const Tensor&) override {}
  void cross_entropy_forward_impl(const Tensor&, const Tensor&,
                                  const CrossEntropyOptions&) override {}
  void cross_entropy_merge_impl(const Tensor&, const Tensor&) override {}
  void cross_entropy_backward_impl(const Tensor&, const Tensor&,
                                   const CrossEntropyOptions&) override {}
  void cross_entropy_loss_impl(const Tensor&, const Tensor&, const CrossEntropyOptions&) override {}
  void router_forward_impl(const RouterOutputs&, const Tensor&) override {}
  void router_loss_impl(const Tensor&, const RouterOutputs&, const RouterLossFactors&) override {}
  void router_backward_impl(const Tensor&, const Tensor&, const RouterOutputs&,
                            const RouterLossFactors&) override {}
  void sort_by_expert_impl(const Tensor&, const Tensor&, const Tensor&) override {}
  void permute_rows_impl(const Tensor&, const Tensor&, const Tensor&) override {}
  void combine_rows_impl(const Tensor&, const Tensor&, const Tensor&, const Tensor&) override {}
  void scale_rows_impl(const Tensor&, const Tensor&, const Tensor&) override {}
  void row_dots_impl(const Tensor&, const Tensor&, const Tensor&) override {}
  void grouped_matmul_impl(const Tensor&, const Tensor&, const Tensor&,
                           const GroupedMatmul&) override {}
  void adamw_step_impl(const AdamWTensors&, const AdamWOptions&) override {}
  void add_sum_squares_impl(const Tensor&, const Tensor&) override {}

  Device device_;
};

}  // namespace phalanx
