// CPU attention as free functions: what CpuBackend::attention_forward and attention_backward run.
// Shapes and meaning as in kernels/backend.h and kernels/op_arguments.h.
#pragma once

#include "kernels/backend.h"

namespace phalanx {

/// out [Sq, B, Kq, A*D], lse [B, G, Sq, Kq*R]. Each query tile is one task, so results do not
/// depend on `num_threads` (0: OpenMP's default).
void cpu_attention_forward(const Tensor& out, const Tensor& lse, const AttentionInputs& inputs,
                           int num_threads = 0);

/// dq, dk, dv (assigned) and delta from the saved out and lse. Results do not depend on
/// `num_threads`.
void cpu_attention_backward(const Backend::AttentionBackward& arguments,
                            const AttentionInputs& inputs, int num_threads = 0);

}  // namespace phalanx
