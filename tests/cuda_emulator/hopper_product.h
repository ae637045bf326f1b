// One product of a warpgroup (wgmma.mma_async.m64nNk16, bf16 operands, f32 sums) on plain memory.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "tests/cuda_emulator/hopper_layout.h"

namespace phalanx::emulator {

inline constexpr int kProductRows = 64;
inline constexpr int kProductDepth = 16;

/// What the instruction says: D[64, columns] = A B + (accumulate ? D : 0).
struct ProductTerms {
  int columns = 0;
  bool a_in_registers = false;
  bool mn_major_a = false;
  bool mn_major_b = false;
  uint64_t a = 0;  // descriptors
  uint64_t b = 0;
  bool accumulate = false;
  bool operator==(const ProductTerms&) const = default;
  SharedOperand operand_a() const { return {decode_descriptor(a), mn_major_a, kProductRows}; }
  SharedOperand operand_b() const { return {decode_descriptor(b), mn_major_b, columns}; }
};

/// The 16 bytes at an address of the shared window.
using ReadPiece = std::function<const unsigned char*(uint32_t address)>;

/// The operand's elements, [mn, k] with 16 of k, as bits of bf16.
std::vector<uint16_t> read_operand(const SharedOperand& operand, const ReadPiece& read);

/// sums[64, columns] += a[64, 16] b[columns, 16]^T. Each sum takes its products in ascending order
/// of k, in f32; the machine's order and rounding within one product are not documented.
void multiply(const std::vector<uint16_t>& a, const std::vector<uint16_t>& b, int columns,
              std::vector<float>& sums);

}  // namespace phalanx::emulator
