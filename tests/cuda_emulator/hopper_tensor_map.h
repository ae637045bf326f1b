// Tensor maps and the copies that they describe: boxes of a tensor in global memory, brought to
// shared memory with zeros outside of the tensor and 16-byte pieces swizzled. From the driver API's
// cuTensorMapEncodeTiled and the PTX ISA, "Tensors" (tiled mode, swizzling modes).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "tests/cuda_emulator/include/cuda.h"

namespace phalanx::emulator {

inline constexpr int kMaxTensorRank = 5;

/// What the opaque bytes of a CUtensorMap hold here. Dimensions innermost first.
struct TensorMapFields {
  uint64_t mark = 0;
  const unsigned char* data = nullptr;
  std::array<uint64_t, kMaxTensorRank> sizes{};    // elements
  std::array<uint64_t, kMaxTensorRank> strides{};  // bytes; of dimension 0 the element's size
  std::array<uint16_t, kMaxTensorRank> box{};
  std::array<uint8_t, kMaxTensorRank> steps{};  // "element strides"
  uint8_t rank = 0;
  uint8_t span = 16;  // of the swizzle

  uint32_t element_bytes() const { return static_cast<uint32_t>(strides[0]); }
  /// Elements that a copy brings along `dimension`: ceil(box / step).
  uint32_t count(int dimension) const;
  /// Bytes of a copy, those outside of the tensor included.
  uint32_t box_bytes() const;
};

/// The map's content; nullptr unless cuTensorMapEncodeTiled made it.
const TensorMapFields* fields_of(const CUtensorMap& map);

/// What is wrong with a copy of the box into shared memory at window address `address`, or "".
std::string copy_error(const TensorMapFields& fields, uint32_t address);

/// The first and the past-the-end byte of global memory that the box at `start` touches.
std::array<const unsigned char*, 2> touched_range(const TensorMapFields& fields,
                                                  std::span<const int32_t> start);

/// Copies the box whose first element has the coordinates `start` (innermost first) to `target`,
/// which lies at `address` of the shared window.
void copy_box(const TensorMapFields& fields, std::span<const int32_t> start, unsigned char* target,
              uint32_t address);

}  // namespace phalanx::emulator
