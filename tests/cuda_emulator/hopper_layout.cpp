// Layouts of matrices for wgmma.
#include "tests/cuda_emulator/hopper_layout.h"

#include <fmt/format.h>

#include <algorithm>

namespace phalanx::emulator {
namespace {

constexpr int kElementBytes = 2;
constexpr int kCore = 8;  // rows of a core matrix, and bf16 in 16 bytes
constexpr uint32_t kDepth = 16;

uint32_t encoded_field(uint64_t bits, int first) {
  return static_cast<uint32_t>(bits >> first & 0x3fffU) << 4;
}

bool is_swizzled(const SharedOperand& operand) {
  return operand.descriptor.span > 16;
}

/// Bytes from the start, before the swizzle. In the canonical layouts of the table, T = 8 elements
/// (16 bytes) and offsets are in elements:
///   K, none      ((8,m),(T,2k)):((1T,SBO),(1,LBO))       K, swizzled
///   ((8,m),(T,2k)):((cT,SBO),(1,T)) MN, none     ((T,1,m),(8,k)):((1,T,SBO),(1T,LBO))    MN,
///   swizzled ((T,c,m),(8,k)):((1,T,LBO),(cT,SBO))
/// with c = span / 16 pieces of 16 bytes.
uint32_t canonical_offset(const SharedOperand& operand, uint32_t mn, uint32_t k) {
  const MatrixDescriptor& d = operand.descriptor;
  const uint32_t per_line = d.span / kElementBytes;
  if (!operand.mn_major) {
    const uint32_t rows = mn % kCore * d.span + mn / kCore * d.stride_bytes;
    if (is_swizzled(operand)) return rows + k * kElementBytes;
    return rows + k / kCore * d.leading_bytes + k % kCore * kElementBytes;
  }
  const uint32_t inner = mn % per_line * kElementBytes + k % kCore * d.span;
  if (is_swizzled(operand))
    return inner + mn / per_line * d.leading_bytes + k / kCore * d.stride_bytes;
  return inner + mn / per_line * d.stride_bytes + k / kCore * d.leading_bytes;
}

std::string swizzled_operand_error(const SharedOperand& operand) {
  const MatrixDescriptor& d = operand.descriptor;
  const uint32_t pattern = d.span * kCore;  // bytes after which the swizzle repeats
  if (d.base_offset != 0)
    return fmt::format(
        "base offset {} is not emulated: how it acts is documented for patterns that "
        "start at unaligned addresses only",
        d.base_offset);
  if (d.start % pattern >= d.span)
    return fmt::format(
        "starts {} bytes inside of a pattern of {} bytes: with base offset 0 the "
        "pattern must start at a multiple of its size",
        d.start % pattern, pattern);
  if (d.stride_bytes % pattern != 0)
    return fmt::format("stride of {} bytes: the next pattern must start at a multiple of {}",
                       d.stride_bytes, pattern);
  const uint32_t extent = static_cast<uint32_t>(operand.extent) * kElementBytes;
  const uint32_t used = operand.mn_major ? std::min(extent, d.span) : kDepth * kElementBytes;
  if (d.start % d.span + used > d.span)
    return fmt::format(
        "the {} bytes of a line from byte {} on run over the {} bytes of the swizzle", used,
        d.start % d.span, d.span);
  if (!operand.mn_major || extent <= d.span) return "";
  if (extent % d.span != 0)
    return fmt::format("{} rows or columns are not whole lines of {} bytes", operand.extent,
                       d.span);
  if (d.leading_bytes % pattern != 0)
    return fmt::format(
        "leading offset of {} bytes: the next pattern must start at a multiple of {}",
        d.leading_bytes, pattern);
  return "";
}

}  // namespace

MatrixDescriptor decode_descriptor(uint64_t bits) {
  // Swizzling mode: 0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes.
  constexpr SwizzleSpan kSpans[4] = {16, 128, 64, 32};
  constexpr uint64_t kFields =
      0x3fffULL | 0x3fffULL << 16 | 0x3fffULL << 32 | 7ULL << 49 | 3ULL << 62;
  return {.start = encoded_field(bits, 0),
          .leading_bytes = encoded_field(bits, 16),
          .stride_bytes = encoded_field(bits, 32),
          .base_offset = static_cast<uint32_t>(bits >> 49 & 7),
          .span = kSpans[bits >> 62],
          .unused_bits = bits & ~kFields};
}

uint32_t element_address(const SharedOperand& operand, int mn, int k) {
  const uint32_t offset =
      canonical_offset(operand, static_cast<uint32_t>(mn), static_cast<uint32_t>(k));
  return swizzled(operand.descriptor.start + offset, operand.descriptor.span);
}

std::string operand_error(const SharedOperand& operand) {
  if (operand.descriptor.unused_bits != 0)
    return fmt::format("bits {:#x} belong to no field", operand.descriptor.unused_bits);
  return is_swizzled(operand) ? swizzled_operand_error(operand) : "";
}

}  // namespace phalanx::emulator
