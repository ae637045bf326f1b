// Ops still to come.
#include "kernels/cuda/cuda_backend.h"

namespace phalanx {

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
void CudaBackend::attention_forward_impl(const Tensor&, const Tensor&, const AttentionInputs&) {
  fail("attention_forward_impl is not there yet");
}
void CudaBackend::attention_backward_impl(const AttentionBackward&, const AttentionInputs&) {
  fail("attention_backward_impl is not there yet");
}
void CudaBackend::attention_merge_impl(const Tensor&, const Tensor&, const Tensor&, const Tensor&) {
  fail("attention_merge_impl is not there yet");
}

}  // namespace phalanx
