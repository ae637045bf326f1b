// The ways attention runs on a GPU, and what they all take: AttentionLayout (the sizes, mask and
// positions of a call) and the tensors' pointers, both passed to kernels by value.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/attention_schedule.h"
#include "kernels/backend.h"

namespace phalanx {

inline constexpr double kAttentionLog2E = 1.4426950408889634074;

/// Sizes, mask and positions of a call. Throws if the runs of positions are more than a kernel's
/// argument holds.
AttentionLayout make_attention_layout(const AttentionInputs& inputs);

/// What a forward reads and writes. Shapes as in Backend.
template <class T>
struct AttentionForwardPointers {
  const T* q;
  const T* k;
  const T* v;
  T* out;
  Accumulator<T>* lse;
};

/// What a backward reads and writes; delta is complete.
template <class T>
struct AttentionBackwardPointers {
  const T* q;
  const T* k;
  const T* v;
  const T* dout;
  const Accumulator<T>* lse;
  const Accumulator<T>* delta;
  T* dq;
  T* dk;
  T* dv;
};

/// Any head dim and any type of float. A warp per query row (per key for dk and dv).
template <class T>
void attention_generic_forward(const AttentionLayout& layout,
                               const AttentionForwardPointers<T>& pointers, cudaStream_t stream);
template <class T>
void attention_generic_backward(const AttentionLayout& layout,
                                const AttentionBackwardPointers<T>& pointers, cudaStream_t stream);

/// bfloat16 on tensor cores by mma.sync: head dims 64, 96 and 128, tensors aligned to 16 bytes.
bool attention_mma_supports(const AttentionLayout& layout,
                            const AttentionForwardPointers<BFloat16>& pointers);
bool attention_mma_supports(const AttentionLayout& layout,
                            const AttentionBackwardPointers<BFloat16>& pointers);
void attention_mma_forward(const AttentionLayout& layout,
                           const AttentionForwardPointers<BFloat16>& pointers, cudaStream_t stream);
void attention_mma_backward(const AttentionLayout& layout,
                            const AttentionBackwardPointers<BFloat16>& pointers,
                            cudaStream_t stream);

/// The same with Hopper's TMA and wgmma: compute capability 9.0, head dims up to 128 that are
/// multiples of 8, tensors aligned to 16 bytes. The backward uses dq as scratch before it is made.
bool attention_hopper_supports(const AttentionLayout& layout,
                               const AttentionForwardPointers<BFloat16>& pointers);
bool attention_hopper_supports(const AttentionLayout& layout,
                               const AttentionBackwardPointers<BFloat16>& pointers);
/// Whether the current device has these instructions, and this program code that uses them.
bool attention_hopper_is_there();
void attention_hopper_forward(const AttentionLayout& layout,
                              const AttentionForwardPointers<BFloat16>& pointers,
                              cudaStream_t stream);
void attention_hopper_backward(const AttentionLayout& layout,
                               const AttentionBackwardPointers<BFloat16>& pointers,
                               cudaStream_t stream);

}  // namespace phalanx
