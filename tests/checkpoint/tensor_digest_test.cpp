// Checksums of tensors: the same for every cut, another for every change.
#include "core/checkpoint/tensor_digest.h"

#include <gmock/gmock.h>
#include <xxhash.h>

#include <cmath>
#include <limits>
#include <random>

#include "tests/parallel/parallel_helpers.h"

namespace phalanx::test {
namespace {

/// The rectangle, packed.
template <class T>
std::vector<T> rectangle(const std::vector<T>& whole, int64_t columns,
                         std::array<int64_t, 2> offset, std::array<int64_t, 2> size) {
  std::vector<T> part;
  for (int64_t row = 0; row < size[0]; ++row) {
    const auto begin = whole.begin() + (offset[0] + row) * columns + offset[1];
    part.insert(part.end(), begin, begin + size[1]);
  }
  return part;
}

template <class T>
uint64_t digest_of(std::vector<T>& values, int64_t columns, std::array<int64_t, 2> offset = {},
                   int64_t global_columns = 0) {
  const Tensor block = cpu_tensor(values.data(), {std::ssize(values) / columns, columns});
  return tensor_digest(block, offset, global_columns > 0 ? global_columns : columns);
}

template <class T>
std::vector<T> random_values(int64_t count, std::mt19937& random) {
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = std::normal_distribution<T>()(random);
  return values;
}

TEST(TensorDigest, LeavesAreAsLongAsSixtyFourRanksAllow) {
  const std::pair<int64_t, int64_t> expected[] = {
      {1, 1},   {16, 1},  {64, 1},    {127, 1},   {128, 2},  {192, 1},   {256, 4},
      {512, 8}, {768, 4}, {1024, 16}, {2048, 16}, {1536, 8}, {3072, 16}, {65536, 16}};
  for (const auto& [columns, leaf] : expected) EXPECT_EQ(digest_leaf(columns), leaf) << columns;
  // Every tensor-parallel size that divides the columns, up to 64, cuts between leaves.
  for (int64_t columns = 1; columns <= 4096; ++columns)
    for (int64_t ranks = 1; ranks <= 64; ++ranks)
      if (columns % ranks == 0) {
        ASSERT_EQ(columns / ranks % digest_leaf(columns), 0) << columns << " " << ranks;
      }
}

template <class T>
class TensorDigest : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(TensorDigest, Types);

TYPED_TEST(TensorDigest, IsTheSumOfAnyCut) {
  std::mt19937 random(11);
  for (const int64_t columns : {1, 3, 64, 128, 384, 1024, 2048}) {
    const auto rows = static_cast<int64_t>(1 + random() % 20);
    std::vector<TypeParam> whole = random_values<TypeParam>(rows * columns, random);
    const uint64_t expected = digest_of(whole, columns);
    const int64_t leaf = digest_leaf(columns);
    for (int attempt = 0; attempt < 10; ++attempt) {
      uint64_t sum = 0;
      for (int64_t left = 0; left < columns;) {
        const auto width = leaf * static_cast<int64_t>(
                                      1 + random() % static_cast<size_t>((columns - left) / leaf));
        for (int64_t top = 0; top < rows;) {
          const auto height = static_cast<int64_t>(1 + random() % static_cast<size_t>(rows - top));
          auto part = rectangle(whole, columns, {top, left}, {height, width});
          sum += digest_of(part, width, {top, left}, columns);
          top += height;
        }
        left += width;
      }
      ASSERT_EQ(sum, expected) << columns;
    }
  }
}

TYPED_TEST(TensorDigest, ChangesWithEveryElementAndItsPlace) {
  constexpr int64_t kRows = 5;
  constexpr int64_t kColumns = 256;
  std::mt19937 random(12);
  auto values = random_values<TypeParam>(kRows * kColumns, random);
  const uint64_t expected = digest_of(values, kColumns);
  for (size_t i = 0; i < values.size(); ++i) {
    const TypeParam value = values[i];
    for (const TypeParam other : {std::nextafter(value, TypeParam{9}), -value, TypeParam{0}}) {
      values[i] = other;
      ASSERT_NE(digest_of(values, kColumns), expected) << i;
    }
    values[i] = value;
    const size_t partner = (i + 1 + random() % (values.size() - 1)) % values.size();
    std::swap(values[i], values[partner]);
    ASSERT_NE(digest_of(values, kColumns), expected) << i << " and " << partner;
    std::swap(values[i], values[partner]);
  }
  EXPECT_EQ(digest_of(values, kColumns), expected);
}

TYPED_TEST(TensorDigest, EqualLeavesThatChangePlacesAreToldApart) {
  // Rows 0 and 1 differ and change places; whole leaves do too.
  std::mt19937 random(13);
  auto values = random_values<TypeParam>(2 * 1024, random);
  const uint64_t expected = digest_of(values, 1024);
  std::swap_ranges(values.begin(), values.begin() + 1024, values.begin() + 1024);
  EXPECT_NE(digest_of(values, 1024), expected);
  std::swap_ranges(values.begin(), values.begin() + 1024, values.begin() + 1024);
  std::swap_ranges(values.begin(), values.begin() + 16, values.begin() + 16);
  EXPECT_NE(digest_of(values, 1024), expected);
  // The same values elsewhere in the tensor, or in a wider one.
  std::vector<TypeParam> block(values.begin(), values.begin() + 64);
  EXPECT_NE(digest_of(block, 64, {0, 64}, 1024), digest_of(block, 64, {1, 64}, 1024));
  EXPECT_NE(digest_of(block, 64, {1, 64}, 1024), digest_of(block, 64, {1, 64}, 2048));
}

TYPED_TEST(TensorDigest, TellsApartZerosAndNoNumbers) {
  std::vector<TypeParam> values(64, TypeParam{0});
  const uint64_t zeros = digest_of(values, 64);
  EXPECT_NE(zeros, 0U);
  values[3] = -TypeParam{0};
  EXPECT_NE(digest_of(values, 64), zeros);
  values[3] = std::numeric_limits<TypeParam>::quiet_NaN();
  const uint64_t nan = digest_of(values, 64);
  EXPECT_NE(nan, zeros);
  EXPECT_EQ(digest_of(values, 64), nan);
}

// The definition, so that files of one version are good for the next.
TYPED_TEST(TensorDigest, IsTheSumOfSeededLeafHashes) {
  std::mt19937 random(14);
  auto block = random_values<TypeParam>(3 * 128, random);
  constexpr int64_t kGlobal = 1024;
  constexpr int64_t kLeaf = 16;
  uint64_t expected = 0;
  for (int64_t row = 0; row < 3; ++row)
    for (int64_t leaf = 0; leaf < 128 / kLeaf; ++leaf) {
      const int64_t number = ((7 + row) * kGlobal + 256) / kLeaf + leaf;
      expected += XXH3_64bits_withSeed(&block[static_cast<size_t>(row * 128 + leaf * kLeaf)],
                                       kLeaf * sizeof(TypeParam), static_cast<uint64_t>(number));
    }
  EXPECT_EQ(digest_of(block, 128, {7, 256}, kGlobal), expected);
}

TYPED_TEST(TensorDigest, RefusesACutInsideALeaf) {
  std::vector<TypeParam> values(1024);
  EXPECT_THROW(digest_of(values, 512, {0, 8}, 1024), Error);
  EXPECT_THROW(digest_of(values, 8, {0, 0}, 1024), Error);
  EXPECT_NO_THROW(digest_of(values, 512, {0, 16}, 1024));
  EXPECT_THROW(tensor_digest({values.data(), {16, 8, 8}, DTypeOf<TypeParam>::value}, {}, 8), Error);
}

}  // namespace
}  // namespace phalanx::test
