// Attention backward: against the definition in f64, by finite differences, and its invariants.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kernels/attention_run.h"

namespace phalanx::testing {
namespace {

template <class T>
class AttentionBackward : public ::testing::Test {};
using Types = ::testing::Types<float, BFloat16, double>;
TYPED_TEST_SUITE(AttentionBackward, Types);

TYPED_TEST(AttentionBackward, EqualsTheDefinition) {
  int number = 0;
  for (const AttentionCase& c : attention_cases()) {
    SCOPED_TRACE(::testing::Message() << "case " << number++ << " q " << c.query_shape().to_string()
                                      << " k " << c.key_shape().to_string());
    AttentionRun<TypeParam> run(c);
    run.forward();
    run.backward();
    const ReferenceGradients expected =
        reference_backward(c, run.q.values(), run.k.values(), run.v.values(), run.dout.values());
    EXPECT_LE(error_ratio(run.dq, expected.dq), 1.0);
    EXPECT_LE(error_ratio(run.dk, expected.dk), 1.0);
    EXPECT_LE(error_ratio(run.dv, expected.dv), 1.0);
  }
}

// One pair on several threads takes the other way of dividing the work: it must give the same bits.
TYPED_TEST(AttentionBackward, DoesNotDependOnTheNumberOfThreads) {
  std::vector<AttentionCase> cases;
  AttentionMask naive{.copies = 2, .visibility = CopyVisibility::naive};
  for (const AttentionMask& mask : {cswa(1, 1, 1), cswa(3, 16, 32), naive}) {
    cases.push_back({.mask = mask, .queries = 290, .keys = 290, .head_dim = 24});
    cases.push_back({.mask = mask,
                     .batch = 2,
                     .groups = 2,
                     .queries = 130,
                     .keys = 130,
                     .per_group = 2,
                     .head_dim = 16});
  }
  cases[2].query_offset = cases[2].key_offset = 77;  // chunks of keys start off their grid
  for (const AttentionCase& c : cases) {
    AttentionRun<TypeParam> run(c);
    run.forward();
    run.backward(1);
    const std::vector<Values> one = {run.dq.values(), run.dk.values(), run.dv.values()};
    for (const int threads : {2, 3}) {
      run.backward(threads);
      EXPECT_EQ(run.dq.values(), one[0]) << threads;
      EXPECT_EQ(run.dk.values(), one[1]) << threads;
      EXPECT_EQ(run.dv.values(), one[2]) << threads;
    }
  }
}

TYPED_TEST(AttentionBackward, KeysThatNobodySeesGetZero) {
  AttentionRun<TypeParam> run({.mask = cswa(3, 16, 32),
                               .queries = 10,
                               .keys = 90,
                               .head_dim = 16,
                               .query_copies = 1,
                               .first_query_copy = 1});
  run.forward();
  run.backward(2);
  const Values dk = run.dk.values();
  const Values dv = run.dv.values();
  for (int64_t copy = 0; copy < 3; ++copy) {
    for (int64_t key = 0; key < 90; ++key) {
      const auto at = static_cast<size_t>((copy * 90 + key) * 16);
      // A copy-1 query at n sees copy 2 of earlier positions, but not of its own.
      const bool seen = key < 10 && !(copy == 2 && key == 9);
      EXPECT_EQ(dv[at] != 0.0, seen) << copy << " " << key;
      if (!seen) {
        EXPECT_EQ(dk[at], 0.0);
      }
    }
  }
}

TYPED_TEST(AttentionBackward, RowThatSeesNothingHasNoGradient) {
  AttentionRun<TypeParam> run(
      {.mask = cswa(2, 4, 8), .queries = 20, .keys = 10, .head_dim = 16, .key_offset = 15});
  run.forward();
  run.backward();
  const Values dq = run.dq.values();
  for (size_t i = 0; i < 2 * 15 * 16; ++i) EXPECT_EQ(dq[i], 0.0);
  for (const auto* x : {&run.dk, &run.dv}) {
    for (const double value : x->values()) EXPECT_FALSE(std::isnan(value));
  }
}

double objective(AttentionRun<double>& run) {
  run.forward();
  return dot(run.out.data, 0, run.dout.data, 0, static_cast<int64_t>(run.out.data.size()));
}

// (f(x + h t) - f(x - h t)) / 2h = <gradient, t> for a random direction t. Error of the left side:
// h^2 f''' + eps f / h; with h = 1e-5 both are near 1e-10 relative to the sizes of the sums.
TEST(AttentionFiniteDifferences, AgreeInEachOperand) {
  constexpr double kStep = 1e-5;
  for (const AttentionMask& mask :
       {cswa(1, 1, 1), cswa(3, 4, 8), cswa(3, 5, 7, WindowUnit::hidden_tokens),
        AttentionMask{.copies = 2, .visibility = CopyVisibility::naive}}) {
    AttentionRun<double> run(
        {.mask = mask, .queries = 23, .keys = 23, .per_group = 2, .head_dim = 8});
    run.forward();
    run.backward();
    Operand<double>* operands[] = {&run.q, &run.k, &run.v};
    const Values gradients[] = {run.dq.data, run.dk.data, run.dv.data};
    for (int i = 0; i < 3; ++i) {
      const Values original = operands[i]->data;
      const auto count = static_cast<int64_t>(original.size());
      const Operand<double> direction(count, 17);
      double value[2];
      for (const int sign : {1, -1}) {
        for (size_t j = 0; j < original.size(); ++j) {
          operands[i]->data[j] = original[j] + sign * kStep * direction.data[j];
        }
        value[sign == 1 ? 0 : 1] = objective(run);
      }
      operands[i]->data = original;
      const double expected = dot(gradients[i], 0, direction.data, 0, count);
      const double size = dot_size(gradients[i], 0, direction.data, 0, count);
      EXPECT_NEAR((value[0] - value[1]) / (2 * kStep), expected, 1e-8 * size) << i;
    }
  }
}

}  // namespace
}  // namespace phalanx::testing
