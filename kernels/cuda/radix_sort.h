// Stable sort of small integers on the GPU, with where each came from.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace phalanx {

/// Device memory of a sort of `count` keys: arrays of `count`, and the counts of digits.
struct SortBuffers {
  int32_t* keys;     // the caller's keys, none negative; after the sort: ascending
  int32_t* origins;  // after the sort: the index of each key before it
  int32_t* other_keys;
  int32_t* other_origins;
  int32_t* offsets;
};

/// Bytes of `sort_buffers`.
int64_t sort_bytes(int64_t count);
/// Buffers in `workspace`. Throws unless indices of `count` keys fit 32 bits.
SortBuffers sort_buffers(void* workspace, int64_t count);

/// Sorts `buffers.keys`, none above `largest`, on `stream`. Equal keys keep their order. Takes one
/// pass over the keys per 8 bits of `largest`, and swaps the buffers between passes.
void sort_keys(SortBuffers& buffers, int64_t count, int64_t largest, cudaStream_t stream);

}  // namespace phalanx
