// Arenas: alignment, scopes, the remembered peak, measuring, and the text of an overflow.
#include "kernels/base/arena.h"

#include <gmock/gmock.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
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

/// An arena of 4 KiB whose further blocks are counted.
class OverflowingArena : public testing::Test {
 protected:
  void SetUp() override {
    arena.set_overflow([this](int64_t bytes) {
      taken.push_back(bytes);
      return std::shared_ptr<void>(
          std::aligned_alloc(Arena::kAlignment, static_cast<size_t>(bytes)),
          [](void* memory) { std::free(memory); });
    });
  }
  Tensor take(int64_t bytes) {
    const Tensor tensor = arena.tensor("rows", {bytes}, DType::u8);
    std::memset(tensor.data, 7, static_cast<size_t>(bytes));
    return tensor;
  }
  bool in_planned_block(const Tensor& tensor) const {
    const auto* data = static_cast<const char*>(tensor.data);
    return block.data() <= data && data + tensor.bytes() <= block.data() + block.size();
  }

  std::vector<char> block = std::vector<char>(4096);
  Arena arena{"saved", block.data(), 4096, Device::cpu};
  std::vector<int64_t> taken;
};

TEST_F(OverflowingArena, TakesABlockOnceAndUsesItAgain) {
  testing::internal::CaptureStderr();
  for (int step = 0; step < 3; ++step) {
    arena.clear();
    EXPECT_TRUE(in_planned_block(take(3000)));
    EXPECT_FALSE(in_planned_block(take(3000)));  // does not fit, so it lies whole in a new block
    take(100);
    EXPECT_EQ(taken.size(), 2U) << "step " << step;
  }
  EXPECT_EQ(arena.overflow_bytes(), taken[0] + taken[1]);
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, testing::HasSubstr("arena 'saved' needs more than the planned"));
  EXPECT_EQ(log.find("arena"), log.rfind("arena")) << "warned more than once";
}

TEST_F(OverflowingArena, ScopesGiveBackAcrossBlocksAndTensorsDoNotOverlap) {
  take(4096);
  const int64_t before = arena.used_bytes();
  {
    const ArenaScope scope(arena);
    const Tensor a = take(2048);
    const Tensor b = take(8192);
    std::memset(a.data, 1, 2048);
    EXPECT_EQ(static_cast<char*>(b.data)[0], 7);
    EXPECT_EQ(static_cast<char*>(b.data)[8191], 7);
  }
  EXPECT_EQ(arena.used_bytes(), before);
  take(0);
  EXPECT_EQ(arena.used_bytes(), before);
  take(2048);
  take(8192);
  EXPECT_EQ(taken, (std::vector<int64_t>{2048, 8192}));
}

TEST(Arena, EmptyTensorsFitIntoAFullArena) {
  std::vector<char> block(256);
  Arena arena("saved", block.data(), 256, Device::cpu);
  arena.tensor("all", {256}, DType::u8);
  EXPECT_EQ(arena.tensor("no rows", {0, 8}, DType::f32).numel(), 0);
}

}  // namespace
}  // namespace phalanx
