// Ops still to come.
#include "kernels/cuda/cuda_backend.h"

namespace phalanx {

void CudaBackend::matmul_impl(const Tensor&, const Tensor&, const Tensor&, const MatmulOptions&) {
  fail("matmul_impl is not there yet");
}
void CudaBackend::embedding_forward_impl(const Tensor&, const Tensor&, const Tensor&, int64_t) {
  fail("embedding_forward_impl is not there yet");
}
void CudaBackend::embedding_backward_impl(const Tensor&, const Tensor&, const Tensor&, int64_t) {
  fail("embedding_backward_impl is not there yet");
}
void CudaBackend::attention_forward_impl(const Tensor&, const Tensor&, const AttentionInputs&) {
  fail("attention_forward_impl is not there yet");
}
void CudaBackend::attention_backward_impl(const AttentionBackward&, const AttentionInputs&) {
  fail("attention_backward_impl is not there yet");
}
void CudaBackend::attention_merge_impl(const Tensor&, const Tensor&, const Tensor&, const Tensor&) {
  fail("attention_merge_impl is not there yet");
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
