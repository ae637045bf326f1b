// Matrix products and loads of a warp.
#include "tests/cuda_emulator/fragments.h"

#include <bit>
#include <cstring>

#include "tests/cuda_emulator/shared_memory.h"

namespace phalanx::emulator {
namespace {

constexpr int kM = 16;
constexpr int kN = 8;
constexpr int kK = 16;

/// Element `i` (0 or 1) of a pair of bf16; the lower half is the first.
float element(uint32_t pair, int i) {
  return std::bit_cast<float>(i == 0 ? pair << 16 : pair & 0xffff0000U);
}

}  // namespace

// With g = lane / 4 and t = lane % 4 the figures give
//   A: element i of 8: row g + 8 for i in {2, 3, 6, 7}, else g; column 2 t + (i & 1), + 8 for i >=
//   4 B: element i of 4: row 2 t + (i & 1), + 8 for i >= 2; column g C: element i of 4: row g, + 8
//   for i >= 2; column 2 t + (i & 1)
void multiply_fragments(std::span<MmaOperand* const> lanes) {
  float a[kM][kK];
  float b[kK][kN];
  for (int lane = 0; lane < 32; ++lane) {
    const MmaOperand& mine = *lanes[static_cast<size_t>(lane)];
    const int g = lane / 4;
    const int t = lane % 4;
    for (int i = 0; i < 8; ++i)
      a[g + ((i & 2) != 0 ? 8 : 0)][2 * t + (i & 1) + (i >= 4 ? 8 : 0)] =
          element(mine.a[i / 2], i & 1);
    for (int i = 0; i < 4; ++i)
      b[2 * t + (i & 1) + (i >= 2 ? 8 : 0)][g] = element(mine.b[i / 2], i & 1);
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* d = lanes[static_cast<size_t>(lane)]->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i >= 2 ? 8 : 0);
      const int column = 2 * (lane % 4) + (i & 1);
      float sum = d[i];
      for (int k = 0; k < kK; ++k) sum += a[row][k] * b[k][column];
      d[i] = sum;
    }
  }
}

void load_matrices(uint32_t* registers, const void* row, bool transposed, const Site& site) {
  check_shared(row, 16, 16, site);
  struct Operand {
    uint32_t* registers;
    const void* row;
    bool transposed;
  } mine{registers, row, transposed};
  meet_warp(0xffffffffU, site, mine, [](std::span<Operand* const> lanes) {
    uint16_t matrices[4][8][8];
    for (size_t lane = 0; lane < 32; ++lane)
      std::memcpy(matrices[lane / 8][lane % 8], lanes[lane]->row, 16);
    for (size_t lane = 0; lane < 32; ++lane) {
      const size_t g = lane / 4;
      const size_t t = lane % 4;
      for (size_t matrix = 0; matrix < 4; ++matrix) {
        const auto& m = matrices[matrix];
        const bool across = lanes[lane]->transposed;
        const uint32_t low = across ? m[2 * t][g] : m[g][2 * t];
        const uint32_t high = across ? m[2 * t + 1][g] : m[g][2 * t + 1];
        lanes[lane]->registers[matrix] = low | high << 16;
      }
    }
  });
}

}  // namespace phalanx::emulator
