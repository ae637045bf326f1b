// Reading operands by their descriptors, and multiplying them.
#include "tests/cuda_emulator/hopper_product.h"

#include <bit>
#include <cstring>

namespace phalanx::emulator {
namespace {

constexpr int kPiece = 8;  // elements in 16 bytes, which every layout keeps together

float value_of(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

}  // namespace

std::vector<uint16_t> read_operand(const SharedOperand& operand, const ReadPiece& read) {
  std::vector<uint16_t> elements(static_cast<size_t>(operand.extent * kProductDepth));
  const int step_mn = operand.mn_major ? kPiece : 1;
  const int step_k = operand.mn_major ? 1 : kPiece;
  for (int mn = 0; mn < operand.extent; mn += step_mn)
    for (int k = 0; k < kProductDepth; k += step_k) {
      uint16_t piece[kPiece];
      std::memcpy(piece, read(element_address(operand, mn, k)), sizeof(piece));
      for (int i = 0; i < kPiece; ++i) {
        const int row = mn + (operand.mn_major ? i : 0);
        const int depth = k + (operand.mn_major ? 0 : i);
        elements[static_cast<size_t>(row * kProductDepth + depth)] = piece[i];
      }
    }
  return elements;
}

void multiply(const std::vector<uint16_t>& a, const std::vector<uint16_t>& b, int columns,
              std::vector<float>& sums) {
  const auto width = static_cast<size_t>(columns);
  std::vector<float> b_rows(width * kProductDepth);  // [k, column], so that the loop below is wide
  for (size_t column = 0; column < width; ++column)
    for (size_t k = 0; k < kProductDepth; ++k)
      b_rows[k * width + column] = value_of(b[column * kProductDepth + k]);
  for (size_t row = 0; row < kProductRows; ++row)
    for (size_t k = 0; k < kProductDepth; ++k) {
      const float factor = value_of(a[row * kProductDepth + k]);
      for (size_t column = 0; column < width; ++column)
        sums[row * width + column] += factor * b_rows[k * width + column];
    }
}

}  // namespace phalanx::emulator
