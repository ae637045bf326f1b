// What the two passes of the backward of attention on Hopper share.
#pragma once

#include "kernels/cuda/attention_hopper_keys.h"
#include "kernels/cuda/attention_kernels.h"

namespace phalanx::hopper_backward {

inline constexpr int kConsumers = 2;
inline constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
inline constexpr int kReaders = kConsumers * kWarpgroup / kWarp;
inline constexpr int kStages = 2;
inline constexpr int kConsumerRegisters = 216;  // of 504 for three warpgroups (PTX ISA, setmaxnreg)
inline constexpr int kProducerRegisters = 72;

/// lse in base 2. A row that saw nothing gets +infinity, so that its weights are 0.
__device__ inline float log2_sum(float lse) {
  return lse == -INFINITY ? INFINITY : lse * kLog2E;
}

struct BackwardMaps {
  TensorMap q, dout, k, v;
};

/// Maps for tiles of `rows` query rows and `keys` keys; dout is in dq's memory.
inline BackwardMaps backward_maps(const AttentionLayout& layout,
                                  const AttentionBackwardPointers<BFloat16>& pointers, int rows,
                                  int keys) {
  return {query_map(layout, pointers.q, rows), query_map(layout, pointers.dq, rows),
          key_map(layout, pointers.k, keys), key_map(layout, pointers.v, keys)};
}

/// Queues the second pass: dq, whose memory holds dout before.
void make_query_gradient(const AttentionLayout& layout,
                         const AttentionBackwardPointers<BFloat16>& pointers, cudaStream_t stream);

}  // namespace phalanx::hopper_backward
