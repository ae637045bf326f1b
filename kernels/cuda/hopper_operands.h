// How operands of Hopper's products are described to the machine: tensor maps for copies by TMA and
// matrix descriptors for wgmma. Plain C++ for the instructions of ptx_hopper.h, apart from them so
// that tests run these very encoders.
#pragma once

#include <cuda.h>

#include <array>

#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/ptx.h"

namespace phalanx {

inline constexpr int kWarpgroup = 128;

/// A tensor of bf16 in global memory and the box that one copy moves. Kernels take it by value as
/// `const __grid_constant__ TensorMap`. Boxes land in shared memory row after row of 128 bytes with
/// the 128-byte swizzle: byte address bits 4 to 6 are XORed with bits 7 to 9.
struct TensorMap {
  CUtensorMap map;
};

/// The driver's function, asked of the runtime once, because a program linked to libcuda starts
/// only where a driver is.
inline auto tensor_map_encoder() {
  static const auto encoder = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                cudaEnableDefault, &found),
               "cudaGetDriverEntryPointByVersion");
    check(found == cudaDriverEntryPointSuccess,
          "the CUDA driver has no cuTensorMapEncodeTiled; update it to CUDA 12.0 or later");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  return encoder;
}

/// Host. `sizes` and `box` are innermost first: [columns, rows, planes], dense in memory from
/// `data` on (aligned to 16 bytes; columns a multiple of 8). `box` is {64, up to 256 rows, 1}. What
/// a box covers outside the tensor arrives as zeros, and counts as bytes all the same.
inline TensorMap make_tensor_map(const BFloat16* data, const std::array<int64_t, 3>& sizes,
                                 const std::array<int, 3>& box) {
  TensorMap result{};
  const cuuint64_t global_sizes[3] = {static_cast<cuuint64_t>(sizes[0]),
                                      static_cast<cuuint64_t>(sizes[1]),
                                      static_cast<cuuint64_t>(sizes[2])};
  const cuuint64_t strides[2] = {global_sizes[0] * sizeof(BFloat16),
                                 global_sizes[0] * global_sizes[1] * sizeof(BFloat16)};
  const cuuint32_t box_sizes[3] = {static_cast<cuuint32_t>(box[0]), static_cast<cuuint32_t>(box[1]),
                                   static_cast<cuuint32_t>(box[2])};
  const cuuint32_t element_strides[3] = {1, 1, 1};
  const CUresult code = tensor_map_encoder()(
      &result.map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<BFloat16*>(data), global_sizes,
      strides, box_sizes, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(code == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with code ", static_cast<int>(code),
        " for a tensor of ", sizes[0], " x ", sizes[1], " x ", sizes[2]);
  return result;
}

/// Which index of an operand in shared memory is contiguous: the one that is summed over (k), or
/// the row of A or column of B (mn). The value is the instruction's imm-trans.
enum class Major : int { k = 0, mn = 1 };

/// Descriptor of an operand in shared memory in the 128-byte swizzle ("Matrix Descriptor Format").
/// `start` is its first byte. Rows of 128 bytes lie in groups of eight, 1,024 bytes each, aligned
/// to 1,024. Major::k: a row is one row of A or column of B; a product of depth 16 uses 32 bytes of
/// each row, so `start` steps by 32 bytes within the 128; `group_bytes` from a group of eight rows
/// to the next; `leading_bytes` unused. Major::mn: a row is one of the depth, holding 64 rows of A
/// or columns of B; `group_bytes` from eight of the depth to the next eight; `leading_bytes` from
/// 64 rows of A or columns of B to the next 64. All multiples of 16, below 2^18.
__device__ inline uint64_t matrix_descriptor(const void* start, uint32_t group_bytes,
                                             uint32_t leading_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | uint64_t{group_bytes >> 4} << 32 | uint64_t{leading_bytes >> 4} << 16 |
         (shared_address(start) & 0x3ffffU) >> 4;
}

}  // namespace phalanx
