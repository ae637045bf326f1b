// Arenas: alignment, scopes, the remembered peak, measuring, and the text of an overflow.
#include "kernels/base/arena.h"

#include <gmock/gmock.h>

#include <cstdint>
#include <vector>

namespace phalanx {
namespace {

TEST(Arena, HandsOutAlignedTensorsAndTakesThemBackInScopes) {
  std::vector<char> block(1 << 16);
  Arena arena("saved", block.data(), 1 << 16, Device::cpu);
  const Tensor first = arena.tensor("first", {3, 5}, DType::f32);
  const int64_t before = arena.used_bytes();
  {
    ArenaScope scope(arena);
    const Tensor second = arena.tensor("second", {100}, DType::bf16);
    EXPECT_EQ(
        (static_cast<char*>(second.data) - static_cast<char*>(first.data)) % Arena::kAlignment, 0);
    EXPECT_GT(arena.used_bytes(), before);
  }
  EXPECT_EQ(arena.used_bytes(), before);
  EXPECT_EQ(arena.peak_bytes(), before + Arena::kAlignment);
}

TEST(Arena, MeasuringPredictsTheRealPeak) {
  Arena measuring = Arena::measuring("scratch", Device::cpu);
  const auto use = [](Arena& arena) {
    arena.tensor("a", {7, 9}, DType::f64);
    {
      ArenaScope scope(arena);
      arena.tensor("b", {1000}, DType::f32);
    }
    arena.tensor("c", {10}, DType::i32);
  };
  use(measuring);
  std::vector<char> block(static_cast<size_t>(measuring.peak_bytes()));
  Arena real("scratch", block.data(), measuring.peak_bytes(), Device::cpu);
  use(real);
  EXPECT_EQ(real.peak_bytes(), measuring.peak_bytes());
  EXPECT_EQ(measuring.peak_contents().front().first, "b");
}

TEST(Arena, OverflowNamesTensorShapeArenaAndNeighbours) {
  std::vector<char> block(1024);
  Arena arena("saved", block.data(), 1024, Device::cpu);
  arena.tensor("attention.q", {128}, DType::f32);
  try {
    arena.tensor("mlp.act", {64, 64}, DType::f32);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("'mlp.act' [64, 64]"));
    EXPECT_THAT(error.what(), testing::HasSubstr("arena 'saved'"));
    EXPECT_THAT(error.what(), testing::HasSubstr("attention.q"));
  }
}

}  // namespace
}  // namespace phalanx
