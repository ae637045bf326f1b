// Attention of bf16 on Hopper GPUs with TMA and wgmma. The dispatch of attention.cu chooses.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/attention_schedule.h"
#include "kernels/backend.h"

namespace phalanx {

/// Whether these kernels take the call: compute capability 9.0 and code made for it, bf16, a head
/// dim of at most 128 that is a multiple of 8, pointers aligned to 16 bytes.
bool hopper_attention_supports(const AttentionInputs& inputs, int device_index);

/// Queues the forward on `stream`. `layout` is that of `inputs`; outputs as in Backend.
void hopper_attention_forward(const Tensor& out, const Tensor& lse, const AttentionInputs& inputs,
                              const AttentionLayout& layout, cudaStream_t stream);

/// Queues the backward on `stream`. Deterministic.
void hopper_attention_backward(const Backend::AttentionBackward& arguments,
                               const AttentionInputs& inputs, const AttentionLayout& layout,
                               cudaStream_t stream);

}  // namespace phalanx
