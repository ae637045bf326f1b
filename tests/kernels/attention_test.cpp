// Attention forward: against the definition in f64, and the invariants of PHD-Transformer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kernels/attention_run.h"

namespace phalanx::testing {
namespace {

template <class T>
class AttentionForward : public ::testing::Test {};
using Types = ::testing::Types<float, BFloat16, double>;
TYPED_TEST_SUITE(AttentionForward, Types);

TYPED_TEST(AttentionForward, EqualsTheDefinition) {
  int number = 0;
  for (const AttentionCase& c : attention_cases()) {
    SCOPED_TRACE(::testing::Message() << "case " << number++ << " q " << c.query_shape().to_string()
                                      << " k " << c.key_shape().to_string());
    AttentionRun<TypeParam> run(c);
    run.forward();
    const ReferenceForward expected =
        reference_forward(c, run.q.values(), run.k.values(), run.v.values());
    EXPECT_LE(error_ratio(run.out, expected.out), 1.0);
    EXPECT_LE(lse_error_ratio(run.lse, expected), 1.0);
  }
}

TYPED_TEST(AttentionForward, RowThatSeesNothingIsZero) {
  AttentionRun<TypeParam> run(
      {.mask = cswa(2, 4, 8), .queries = 20, .keys = 10, .head_dim = 16, .key_offset = 15});
  run.forward();
  const Values out = run.out.values();
  for (int64_t row = 0; row < 2 * 15; ++row) {
    EXPECT_EQ(run.lse.data[static_cast<size_t>(row)],
              -std::numeric_limits<Accumulator<TypeParam>>::infinity());
    EXPECT_EQ(out[static_cast<size_t>(row * 16)], 0.0);
  }
  EXPECT_NE(out[30 * 16], 0.0);
}

TYPED_TEST(AttentionForward, NaNInIsNaNOut) {
  AttentionRun<TypeParam> run({.mask = cswa(1, 1, 1), .queries = 5, .keys = 5, .head_dim = 8});
  run.q.data[3 * 8] = TypeParam(std::numeric_limits<Accumulator<TypeParam>>::quiet_NaN());
  run.forward();
  const Values out = run.out.values();
  EXPECT_FALSE(std::isnan(out[2 * 8]));
  EXPECT_TRUE(std::isnan(out[3 * 8]));
  EXPECT_FALSE(std::isnan(out[4 * 8]));
}

// Rows of one copy out of [S, K, D] outputs of one head.
template <class T>
Values rows_of_copy(const AttentionRun<T>& run, int64_t copy) {
  const Values out = run.out.values();
  Values rows;
  const int64_t width = run.c.heads() * run.c.head_dim;
  const int64_t copies = run.c.num_query_copies();
  for (int64_t row = copy; row < run.c.queries * run.c.batch * copies; row += copies) {
    rows.insert(rows.end(), out.begin() + row * width, out.begin() + (row + 1) * width);
  }
  return rows;
}

// Originals get the same q, k, v in every K; all other copies get other values.
template <class T>
AttentionRun<T> run_with_same_originals(AttentionCase c, int64_t copies) {
  AttentionRun<T> vanilla(c, 7);
  c.mask.copies = copies;
  AttentionRun<T> run(c, 99);
  std::copy(vanilla.k.data.begin(), vanilla.k.data.end(), run.k.data.begin());
  std::copy(vanilla.v.data.begin(), vanilla.v.data.end(), run.v.data.begin());
  const int64_t row = c.per_group * c.head_dim;
  const int64_t positions = c.batch * c.groups * c.queries;
  for (int64_t i = 0; i < positions; ++i) {
    std::copy_n(vanilla.q.data.begin() + i * row, row, run.q.data.begin() + i * copies * row);
  }
  run.forward();
  return run;
}

/// Originals of K copies against those of one, without and with documents.
template <class T>
void check_originals(AttentionCase c) {
  const Values vanilla = rows_of_copy(run_with_same_originals<T>(c, 1), 0);
  for (const int64_t copies : {2, 3, 5}) {
    EXPECT_EQ(rows_of_copy(run_with_same_originals<T>(c, copies), 0), vanilla);
  }
  for (int32_t i = 0; i < 300; ++i) c.document_start.push_back(i % 150 / 47 * 47);
  const Values documents = rows_of_copy(run_with_same_originals<T>(c, 1), 0);
  EXPECT_NE(documents, vanilla);
  EXPECT_EQ(rows_of_copy(run_with_same_originals<T>(c, 3), 0), documents);
}

TYPED_TEST(AttentionForward, OriginalsAreBitEqualToVanillaForEveryK) {
  for (const KeyPattern pattern : {KeyPattern::full, KeyPattern::sink_window}) {
    AttentionMask mask = cswa(1, 16, 32);
    mask.pattern = pattern;
    mask.block = 16;
    mask.window_blocks = 2;
    AttentionCase c{.mask = mask,
                    .batch = 2,
                    .groups = 2,
                    .queries = 150,
                    .keys = 150,
                    .per_group = 2,
                    .head_dim = 40};
    check_originals<TypeParam>(c);
    c.head_dim = 64;  // has a kernel of its own on a GPU in bf16
    if constexpr (std::is_same_v<TypeParam, BFloat16>) check_originals<TypeParam>(c);
  }
}

TYPED_TEST(AttentionForward, HiddenKeysNeverReachOriginals) {
  AttentionRun<TypeParam> run(
      {.mask = cswa(3, 16, 32), .queries = 90, .keys = 90, .per_group = 2, .head_dim = 32});
  run.forward();
  const Values originals = rows_of_copy(run, 0);
  const Values hidden = rows_of_copy(run, 2);
  for (size_t i = 90 * 32; i < run.k.data.size(); ++i) {
    run.k.data[i] = TypeParam(0.5F);
    run.v.data[i] = TypeParam(-2.0F);
  }
  run.forward();
  EXPECT_EQ(rows_of_copy(run, 0), originals);
  EXPECT_NE(rows_of_copy(run, 2), hidden);
}

TYPED_TEST(AttentionForward, TokenNeverReachesEarlierPositions) {
  for (const CopyVisibility visibility : {CopyVisibility::local, CopyVisibility::naive}) {
    AttentionMask mask = cswa(3, 16, 32);
    mask.visibility = visibility;
    AttentionRun<TypeParam> run({.mask = mask, .queries = 90, .keys = 90, .head_dim = 16});
    run.forward();
    const Values before = run.out.values();
    constexpr int64_t kChanged = 57;
    for (int64_t copy = 0; copy < 3; ++copy) {
      for (int64_t d = 0; d < 16; ++d) {
        const auto key = static_cast<size_t>((copy * 90 + kChanged) * 16 + d);
        run.k.data[key] = TypeParam(3.0F);
        run.v.data[key] = TypeParam(-4.0F);
        run.q.data[static_cast<size_t>((kChanged * 3 + copy) * 16 + d)] = TypeParam(1.0F);
      }
    }
    run.forward();
    const Values after = run.out.values();
    const auto boundary = static_cast<std::ptrdiff_t>(kChanged * 3 * 16);
    EXPECT_TRUE(std::equal(before.begin(), before.begin() + boundary, after.begin()));
    for (size_t row = kChanged * 3; row < 90 * 3; ++row)
      EXPECT_NE(before[row * 16], after[row * 16]);
  }
}

TYPED_TEST(AttentionForward, DoesNotDependOnTheNumberOfThreads) {
  AttentionRun<TypeParam> run({.mask = cswa(3, 16, 32),
                               .batch = 2,
                               .groups = 3,
                               .queries = 130,
                               .keys = 130,
                               .head_dim = 24});
  run.forward(1);
  const Values one = run.out.values();
  for (const int threads : {2, 3}) {
    run.forward(threads);
    EXPECT_EQ(run.out.values(), one);
  }
}

// The scores here are far beyond exp's range, so any form without a running maximum overflows.
TYPED_TEST(AttentionForward, LargeScoresDoNotOverflow) {
  AttentionRun<TypeParam> run({.mask = cswa(2, 4, 8), .queries = 70, .keys = 70, .head_dim = 16});
  for (TypeParam& x : run.q.data) x = TypeParam(static_cast<Accumulator<TypeParam>>(x) * 1000);
  run.forward();
  for (const double x : run.out.values()) EXPECT_TRUE(std::isfinite(x));
}

}  // namespace
}  // namespace phalanx::testing
