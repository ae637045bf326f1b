// Fragments of matrices spread over a warp: mma.sync and ldmatrix, from the figures of the PTX ISA
// ("Matrix Fragments for mma.m16n8k16 with floating point type", "ldmatrix").
#pragma once

#include <cstdint>
#include <span>

#include "tests/cuda_emulator/collective.h"

namespace phalanx::emulator {

/// What a lane brings to mma.m16n8k16 with bf16 operands and f32 sums.
struct MmaOperand {
  float* d;           // 4, read and written
  const uint32_t* a;  // 4 pairs of bf16
  const uint32_t* b;  // 2 pairs
};

/// D[16, 8] += A[16, 16] B[16, 8]; sums of products in f32, in ascending order of k.
void multiply_fragments(std::span<MmaOperand* const> lanes);

/// Four 8 x 8 matrices of 16-bit elements, rows of 16 bytes at the addresses that the lanes give.
void load_matrices(uint32_t* registers, const void* row, bool transposed, const Site& site);

}  // namespace phalanx::emulator
