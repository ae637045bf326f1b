// Where Hopper's instructions find the elements of a matrix: swizzled shared memory, matrix
// descriptors, fragments in registers. Read from the PTX ISA: "Swizzling Modes" (tensors) and, of
// "Asynchronous Warpgroup Level Matrix Instructions", "Canonical Layouts", "Matrix Descriptor
// Format" and "Register Fragments for wgmma.mma_async.m64nNk16".
#pragma once

#include <cstdint>
#include <string>

namespace phalanx::emulator {

/// Bytes that a 16-byte piece moves within: 16 (no swizzle), 32, 64 or 128.
using SwizzleSpan = uint32_t;

/// Where the 16-byte piece that `address` belongs to lies. The tables of "Swizzling Modes" number
/// the pieces of each line of 128 bytes; the swizzle base offset given there, (address / 128) mod
/// 8, 4 or 2, makes the line's number that of the address itself: bits 4.. are XORed with bits 7...
constexpr uint32_t swizzled(uint32_t address, SwizzleSpan span) {
  const uint32_t mask = span / 16 - 1;
  return address ^ (address >> 7 & mask) << 4;
}

/// The fields of a 64-bit matrix descriptor, decoded.
struct MatrixDescriptor {
  uint32_t start = 0;          // in the shared window, bytes
  uint32_t leading_bytes = 0;  // "leading dimension byte offset"
  uint32_t stride_bytes = 0;   // "stride dimension byte offset"
  uint32_t base_offset = 0;
  SwizzleSpan span = 16;
  uint64_t unused_bits = 0;  // bits of no field
};
MatrixDescriptor decode_descriptor(uint64_t bits);

/// A bf16 operand in shared memory: rows of A or columns of B (`mn`) by the depth 16 (`k`).
struct SharedOperand {
  MatrixDescriptor descriptor;
  bool mn_major = false;  // imm-trans
  int extent = 64;        // of mn
};

/// Address in the shared window of element (mn, k): the canonical layout of the operand, from its
/// start on, then the swizzle of the address.
uint32_t element_address(const SharedOperand& operand, int mn, int k);

/// What is wrong with the operand, or "". Refused is also what the documentation leaves open: base
/// offsets, parts of swizzled lines that would run over the line's end, starts inside of a pattern.
std::string operand_error(const SharedOperand& operand);

struct Place {
  int row = 0;
  int column = 0;
};
/// Of the accumulators, in d[i] of thread `thread` of the warpgroup (figure "WGMMA .m64nNk16
/// register fragment layout for accumulator matrix D").
constexpr Place accumulator_place(int thread, int i) {
  const int warp = thread / 32;
  const int lane = thread % 32;
  return {16 * warp + lane / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (lane % 4) + i % 2};
}
/// Of A in registers, element a0 to a7 of the four pairs (same section, "matrix A").
constexpr Place multiplicand_place(int thread, int element) {
  const int warp = thread / 32;
  const int lane = thread % 32;
  return {16 * warp + lane / 4 + 8 * (element / 2 % 2),
          2 * (lane % 4) + element % 2 + 8 * (element / 4)};
}

}  // namespace phalanx::emulator
