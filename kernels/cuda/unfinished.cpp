// Ops still to come.
#include "kernels/cuda/cuda_backend.h"

namespace phalanx {

void CudaBackend::zero_impl(const Tensor&) {
  fail("zero_impl is not there yet");
}
void CudaBackend::copy_impl(const Tensor&, const Tensor&) {
  fail("copy_impl is not there yet");
}
void CudaBackend::add_impl(const Tensor&, const Tensor&, const Tensor&) {
  fail("add_impl is not there yet");
}
void CudaBackend::scale_impl(const Tensor&, double) {
  fail("scale_impl is not there yet");
}
void CudaBackend::fill_impl(const Tensor&, double) {
  fail("fill_impl is not there yet");
}
void CudaBackend::truncated_normal_impl(const Tensor&, const TruncatedNormal&) {
  fail("truncated_normal_impl is not there yet");
}
void CudaBackend::matmul_impl(const Tensor&, const Tensor&, const Tensor&, const MatmulOptions&) {
  fail("matmul_impl is not there yet");
}
void CudaBackend::embedding_forward_impl(const Tensor&, const Tensor&, const Tensor&, int64_t) {
  fail("embedding_forward_impl is not there yet");
}
void CudaBackend::embedding_backward_impl(const Tensor&, const Tensor&, const Tensor&, int64_t) {
  fail("embedding_backward_impl is not there yet");
}
void CudaBackend::select_copy_impl(const Tensor&, const Tensor&, int64_t) {
  fail("select_copy_impl is not there yet");
}
void CudaBackend::accumulate_copy_impl(const Tensor&, const Tensor&, int64_t) {
  fail("accumulate_copy_impl is not there yet");
}
void CudaBackend::gather_positions_impl(const Tensor&, const Tensor&,
                                        std::span<const PositionRange>) {
  fail("gather_positions_impl is not there yet");
}
void CudaBackend::accumulate_positions_impl(const Tensor&, const Tensor&,
                                            std::span<const PositionRange>) {
  fail("accumulate_positions_impl is not there yet");
}
void CudaBackend::rms_norm_forward_impl(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                        double) {
  fail("rms_norm_forward_impl is not there yet");
}
void CudaBackend::add_rms_norm_forward_impl(const AddRmsNorm&) {
  fail("add_rms_norm_forward_impl is not there yet");
}
void CudaBackend::rms_norm_backward_impl(const RmsNormBackward&) {
  fail("rms_norm_backward_impl is not there yet");
}
void CudaBackend::rope_table_impl(const Tensor&, double) {
  fail("rope_table_impl is not there yet");
}
void CudaBackend::row_sum_squares_impl(const Tensor&, const Tensor&, int64_t, int64_t) {
  fail("row_sum_squares_impl is not there yet");
}
void CudaBackend::split_heads_forward_impl(const Tensor&, const Tensor&, const SplitHeads&) {
  fail("split_heads_forward_impl is not there yet");
}
void CudaBackend::split_heads_row_dots_impl(const Tensor&, const Tensor&, const Tensor&,
                                            const SplitHeads&) {
  fail("split_heads_row_dots_impl is not there yet");
}
void CudaBackend::split_heads_backward_impl(const SplitHeadsBackward&, const SplitHeads&) {
  fail("split_heads_backward_impl is not there yet");
}
void CudaBackend::swiglu_forward_impl(const Tensor&, const Tensor&) {
  fail("swiglu_forward_impl is not there yet");
}
void CudaBackend::swiglu_backward_impl(const Tensor&, const Tensor&, const Tensor&) {
  fail("swiglu_backward_impl is not there yet");
}
void CudaBackend::cross_entropy_forward_impl(const Tensor&, const Tensor&,
                                             const CrossEntropyOptions&) {
  fail("cross_entropy_forward_impl is not there yet");
}
void CudaBackend::cross_entropy_backward_impl(const Tensor&, const Tensor&,
                                              const CrossEntropyOptions&) {
  fail("cross_entropy_backward_impl is not there yet");
}
void CudaBackend::cross_entropy_loss_impl(const Tensor&, const Tensor&,
                                          const CrossEntropyOptions&) {
  fail("cross_entropy_loss_impl is not there yet");
}
void CudaBackend::router_forward_impl(const RouterOutputs&, const Tensor&) {
  fail("router_forward_impl is not there yet");
}
void CudaBackend::router_loss_impl(const Tensor&, const RouterOutputs&, const RouterLossFactors&) {
  fail("router_loss_impl is not there yet");
}
void CudaBackend::router_backward_impl(const Tensor&, const Tensor&, const RouterOutputs&,
                                       const RouterLossFactors&) {
  fail("router_backward_impl is not there yet");
}
void CudaBackend::sort_by_expert_impl(const Tensor&, const Tensor&, const Tensor&) {
  fail("sort_by_expert_impl is not there yet");
}
void CudaBackend::permute_rows_impl(const Tensor&, const Tensor&, const Tensor&) {
  fail("permute_rows_impl is not there yet");
}
void CudaBackend::combine_rows_impl(const Tensor&, const Tensor&, const Tensor&, const Tensor&) {
  fail("combine_rows_impl is not there yet");
}
void CudaBackend::scale_rows_impl(const Tensor&, const Tensor&, const Tensor&) {
  fail("scale_rows_impl is not there yet");
}
void CudaBackend::row_dots_impl(const Tensor&, const Tensor&, const Tensor&) {
  fail("row_dots_impl is not there yet");
}
void CudaBackend::grouped_matmul_impl(const Tensor&, const Tensor&, const Tensor&,
                                      const GroupedMatmul&) {
  fail("grouped_matmul_impl is not there yet");
}
void CudaBackend::adamw_step_impl(const AdamWTensors&, const AdamWOptions&) {
  fail("adamw_step_impl is not there yet");
}
void CudaBackend::add_sum_squares_impl(const Tensor&, const Tensor&) {
  fail("add_sum_squares_impl is not there yet");
}

}  // namespace phalanx
