// cuTensorMapEncodeTiled with the restrictions its documentation names, and copies of boxes.
#include "tests/cuda_emulator/hopper_tensor_map.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstring>

#include "tests/cuda_emulator/driver_entry.h"
#include "tests/cuda_emulator/hopper_layout.h"

namespace phalanx::emulator {
namespace {

constexpr uint64_t kMark = 0x70616d726f736e74;
static_assert(sizeof(TensorMapFields) <= sizeof(CUtensorMap));

uint32_t bytes_of(CUtensorMapDataType type) {
  constexpr uint32_t kBytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
  return kBytes[type];
}

struct EncodeArguments {
  const void* map;
  cuuint32_t rank;
  uint32_t element_bytes;
  const void* data;
  const cuuint64_t* sizes;
  const cuuint64_t* strides;
  const cuuint32_t* box;
  const cuuint32_t* steps;
  uint32_t span;
};

bool is_multiple(const void* pointer, uintptr_t of) {
  return reinterpret_cast<uintptr_t>(pointer) % of == 0;
}

/// What the documentation of cuTensorMapEncodeTiled forbids (no interleave), or "".
std::string encode_error(const EncodeArguments& a) {
  if (!is_multiple(a.map, 64)) return "the map is not aligned to 64 bytes";
  if (a.rank == 0 || a.rank > kMaxTensorRank) return fmt::format("rank {}, not 1 to 5", a.rank);
  if (a.data == nullptr || !is_multiple(a.data, 16)) return "the data are not aligned to 16 bytes";
  for (cuuint32_t i = 0; i < a.rank; ++i) {
    if (a.sizes[i] == 0 || a.sizes[i] > uint64_t{1} << 32)
      return fmt::format("size {} of dimension {}, not 1 to 2^32", a.sizes[i], i);
    if (a.box[i] == 0 || a.box[i] > 256)
      return fmt::format("box {} of dimension {}, not 1 to 256", a.box[i], i);
    if (a.steps[i] == 0 || a.steps[i] > 8)
      return fmt::format("element stride {} of dimension {}, not 1 to 8", a.steps[i], i);
  }
  for (cuuint32_t i = 0; i + 1 < a.rank; ++i)
    if (a.strides[i] % 16 != 0 || a.strides[i] >= uint64_t{1} << 40)
      return fmt::format("stride {} of dimension {}: a multiple of 16 below 2^40 is needed",
                         a.strides[i], i + 1);
  const uint32_t inner = a.box[0] * a.element_bytes;
  if (inner % 16 != 0)
    return fmt::format("{} bytes of the box inside, not a multiple of 16", inner);
  if (a.span > 16 && inner > a.span)
    return fmt::format("{} bytes of the box inside, more than the swizzle's {}", inner, a.span);
  return "";
}

/// Calls `visit(outer indices, number of the line)` for each line of the box.
template <class Visit>
void for_each_line(const TensorMapFields& fields, Visit visit) {
  std::array<uint32_t, kMaxTensorRank> index{};
  for (uint32_t line = 0;; ++line) {
    visit(index, line);
    int dimension = 1;
    for (; dimension < fields.rank &&
           ++index[static_cast<size_t>(dimension)] == fields.count(dimension);
         ++dimension)
      index[static_cast<size_t>(dimension)] = 0;
    if (dimension >= fields.rank) return;
  }
}

/// Coordinate of entry `index` along `dimension`.
int64_t coordinate(const TensorMapFields& fields, std::span<const int32_t> start, size_t dimension,
                   uint32_t index) {
  const int64_t step = dimension == 0 ? 1 : fields.steps[dimension];
  return start[dimension] + step * int64_t{index};
}

bool is_inside(const TensorMapFields& fields, size_t dimension, int64_t at) {
  return at >= 0 && at < static_cast<int64_t>(fields.sizes[dimension]);
}

/// The line's first byte in global memory (element 0 of dimension 0), nullptr outside.
const unsigned char* global_line(const TensorMapFields& fields, std::span<const int32_t> start,
                                 const std::array<uint32_t, kMaxTensorRank>& index) {
  int64_t offset = 0;
  for (size_t i = 1; i < fields.rank; ++i) {
    const int64_t at = coordinate(fields, start, i, index[i]);
    if (!is_inside(fields, i, at)) return nullptr;
    offset += at * static_cast<int64_t>(fields.strides[i]);
  }
  return fields.data + offset;
}

[[maybe_unused]] const bool kRegistered = register_driver_entry(
    "cuTensorMapEncodeTiled", reinterpret_cast<void*>(&cuTensorMapEncodeTiled));

}  // namespace

uint32_t TensorMapFields::count(int dimension) const {
  const auto i = static_cast<size_t>(dimension);
  // "The first element of this array is ignored" without interleave.
  return dimension == 0 ? box[0] : (uint32_t{box[i]} + steps[i] - 1) / steps[i];
}

uint32_t TensorMapFields::box_bytes() const {
  uint32_t bytes = element_bytes();
  for (int i = 0; i < rank; ++i) bytes *= count(i);
  return bytes;
}

const TensorMapFields* fields_of(const CUtensorMap& map) {
  const auto* fields = reinterpret_cast<const TensorMapFields*>(&map);
  return is_multiple(&map, 64) && fields->mark == kMark ? fields : nullptr;
}

std::string copy_error(const TensorMapFields& fields, uint32_t address) {
  if (address % 128 != 0) return "the address in shared memory is not aligned to 128 bytes";
  const uint32_t inner = fields.box[0] * fields.element_bytes();
  if (fields.span > 16 && inner < fields.span)
    return fmt::format("lines of {} bytes in a swizzle of {}: where they lie is not documented",
                       inner, fields.span);
  return "";
}

std::array<const unsigned char*, 2> touched_range(const TensorMapFields& fields,
                                                  std::span<const int32_t> start) {
  const unsigned char* first = nullptr;
  const unsigned char* end = nullptr;
  const int64_t from = std::max<int64_t>(start[0], 0);
  const int64_t to =
      std::min<int64_t>(int64_t{start[0]} + fields.box[0], static_cast<int64_t>(fields.sizes[0]));
  if (from >= to) return {nullptr, nullptr};
  for_each_line(fields, [&](const auto& index, uint32_t) {
    const unsigned char* line = global_line(fields, start, index);
    if (line == nullptr) return;
    const unsigned char* line_first = line + from * fields.element_bytes();
    const unsigned char* line_end = line + to * fields.element_bytes();
    first = first == nullptr ? line_first : std::min(first, line_first);
    end = end == nullptr ? line_end : std::max(end, line_end);
  });
  return {first, end};
}

void copy_box(const TensorMapFields& fields, std::span<const int32_t> start, unsigned char* target,
              uint32_t address) {
  const uint32_t element = fields.element_bytes();
  const uint32_t line_bytes = fields.box[0] * element;
  const uint32_t per_piece = 16 / element;
  for_each_line(fields, [&](const auto& index, uint32_t line) {
    const unsigned char* source = global_line(fields, start, index);
    for (uint32_t i = 0; i < fields.box[0]; i += per_piece) {
      unsigned char piece[16] = {};
      for (uint32_t j = 0; j < per_piece && source != nullptr; ++j) {
        const int64_t at = coordinate(fields, start, 0, i + j);
        if (is_inside(fields, 0, at))
          std::memcpy(piece + j * element, source + at * element, element);
      }
      const uint32_t place = swizzled(address + line * line_bytes + i * element, fields.span);
      std::memcpy(target + (place - address), piece, sizeof(piece));
    }
  });
}

}  // namespace phalanx::emulator

extern "C" CUresult cuTensorMapEncodeTiled(
    CUtensorMap* tensorMap, CUtensorMapDataType tensorDataType, cuuint32_t tensorRank,
    void* globalAddress, const cuuint64_t* globalDim, const cuuint64_t* globalStrides,
    const cuuint32_t* boxDim, const cuuint32_t* elementStrides, CUtensorMapInterleave interleave,
    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill oobFill) {
  using namespace phalanx::emulator;  // NOLINT: the API is C
  const uint32_t bytes = bytes_of(tensorDataType);
  const uint32_t span = 16U << swizzle;
  std::string error = encode_error({tensorMap, tensorRank, bytes, globalAddress, globalDim,
                                    globalStrides, boxDim, elementStrides, span});
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || oobFill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
    error = "interleave and NaN fill are not emulated";
  if (!error.empty()) {
    std::fprintf(stderr, "CUDA emulator: cuTensorMapEncodeTiled: %s\n", error.c_str());
    return CUDA_ERROR_INVALID_VALUE;
  }
  TensorMapFields fields{.mark = kMark,
                         .data = static_cast<const unsigned char*>(globalAddress),
                         .rank = static_cast<uint8_t>(tensorRank),
                         .span = static_cast<uint8_t>(span)};
  for (cuuint32_t i = 0; i < tensorRank; ++i) {
    fields.sizes[i] = globalDim[i];
    fields.strides[i] = i == 0 ? bytes : globalStrides[i - 1];
    fields.box[i] = static_cast<uint16_t>(boxDim[i]);
    fields.steps[i] = static_cast<uint8_t>(elementStrides[i]);
  }
  std::memcpy(static_cast<void*>(tensorMap), &fields, sizeof(fields));
  return CUDA_SUCCESS;
}
