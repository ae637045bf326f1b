// Attention in bf16 at the head dims of real models (64, 96, 128), which have kernels of their own
// on a GPU: against the definition in f64, for every mask, 1 to 4 copies and 1 to 4 heads per
// group, at sizes that leave tiles and blocks partly filled.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/kernels/attention_run.h"

namespace phalanx::testing {
namespace {

std::vector<AttentionMask> width_masks() {
  constexpr int64_t kEndless = AttentionMask::kNoChunk;
  std::vector<AttentionMask> masks = {cswa(1, 1, 1), cswa(2, 16, 32),
                                      cswa(3, 70, kEndless, WindowUnit::hidden_tokens),
                                      cswa(4, 4, 7), cswa(4, 1, kEndless)};
  for (const int64_t copies : {1, 3}) {
    AttentionMask sparse = cswa(copies, 4, 8);
    sparse.pattern = KeyPattern::sink_window;
    sparse.block = 24;
    sparse.window_blocks = 2;
    masks.push_back(sparse);
  }
  AttentionMask naive{.copies = 2, .visibility = CopyVisibility::naive};
  masks.push_back(naive);
  naive.pattern = KeyPattern::strided;
  naive.block = 16;
  naive.stride_blocks = 3;
  masks.push_back(naive);
  return masks;
}

/// Every mask once on a whole sequence, with a growing number of heads per group, and once on some
/// part of a sequence: documents, runs of positions, one copy of the queries, keys of some copies.
std::vector<AttentionCase> width_cases(int64_t head_dim) {
  std::vector<AttentionCase> cases;
  int64_t number = 0;
  for (const AttentionMask& mask : width_masks()) {
    const AttentionCase whole{.mask = mask,
                              .queries = 67 + number,
                              .keys = 67 + number,
                              .per_group = 1 + number % 4,
                              .head_dim = head_dim};
    cases.push_back(whole);
    AttentionCase part = whole;
    part.batch = part.groups = 2;
    part.queries = part.keys = 45;
    part.per_group = 1 + (number + 1) % 2;
    if (number % 3 == 0) {
      for (int32_t i = 0; i < 2 * 45; ++i) part.document_start.push_back(i % 45 / 19 * 19);
    }
    if (number % 3 == 1) {
      part.query_copies = 1;
      part.first_query_copy = mask.copies - 1;
    }
    if (number % 3 != 0) {
      part.query_runs = {{20, 37}, {110, 138}};
      part.key_runs = {{0, 9}, {17, 33}, {100, 120}};
    }
    if (number % 3 == 2) part.first_key_copy = mask.copies > 1 ? 1 : 0;
    cases.push_back(part);
    ++number;
  }
  return cases;
}

class AttentionWidths : public ::testing::TestWithParam<int64_t> {};

TEST_P(AttentionWidths, EqualTheDefinition) {
  int number = 0;
  for (const AttentionCase& c : width_cases(GetParam())) {
    SCOPED_TRACE(::testing::Message() << "case " << number++ << " q " << c.query_shape().to_string()
                                      << " k " << c.key_shape().to_string());
    AttentionRun<BFloat16> run(c);
    run.forward();
    run.backward();
    const ReferenceForward expected =
        reference_forward(c, run.q.values(), run.k.values(), run.v.values());
    EXPECT_LE(error_ratio(run.out, expected.out), 1.0);
    EXPECT_LE(lse_error_ratio(run.lse, expected), 1.0);
    const ReferenceGradients gradients =
        reference_backward(c, run.q.values(), run.k.values(), run.v.values(), run.dout.values());
    EXPECT_LE(error_ratio(run.dq, gradients.dq), 1.0);
    EXPECT_LE(error_ratio(run.dk, gradients.dk), 1.0);
    EXPECT_LE(error_ratio(run.dv, gradients.dv), 1.0);
  }
}

TEST_P(AttentionWidths, RowsThatSeeNothingAndKeysThatNobodySees) {
  const int64_t head_dim = GetParam();
  AttentionRun<BFloat16> run(
      {.mask = cswa(2, 4, 8), .queries = 40, .keys = 50, .head_dim = head_dim, .key_offset = 15});
  run.forward();
  run.backward();
  const Values out = run.out.values();
  const Values dq = run.dq.values();
  for (int64_t i = 0; i < 2 * 15 * head_dim; ++i) {
    EXPECT_EQ(out[static_cast<size_t>(i)], 0.0);
    EXPECT_EQ(dq[static_cast<size_t>(i)], 0.0);
  }
  for (size_t row = 0; row < 2 * 15; ++row)
    EXPECT_EQ(run.lse.data[row], -std::numeric_limits<float>::infinity());
  for (const Operand<BFloat16>* x : {&run.dk, &run.dv}) {
    const Values values = x->values();
    for (size_t i = 0; i < values.size(); ++i) {
      const auto key = static_cast<int64_t>(i) / head_dim % 50;
      EXPECT_EQ(values[i] != 0.0, key < 25) << i;  // positions 15 to 39 have queries
    }
  }
}

// Weights of unseen keys would overflow: lse is about -90 at the largest, 2^(0 - lse) infinite.
TEST_P(AttentionWidths, VeryNegativeScoresStayFinite) {
  AttentionRun<BFloat16> run(
      {.mask = cswa(2, 4, 8), .queries = 21, .keys = 21, .head_dim = GetParam()});
  for (BFloat16& x : run.q.data) x = BFloat16(4.0F);
  for (BFloat16& x : run.k.data) x = BFloat16(-4.0F);
  run.forward();
  run.backward();
  for (const Operand<BFloat16>* x : {&run.out, &run.dq, &run.dk, &run.dv})
    for (const double value : x->values()) EXPECT_TRUE(std::isfinite(value));
}

TEST_P(AttentionWidths, EveryRunGivesTheSameBits) {
  AttentionRun<BFloat16> run({.mask = cswa(3, 16, 32),
                              .batch = 2,
                              .queries = 50,
                              .keys = 50,
                              .per_group = 2,
                              .head_dim = GetParam()});
  run.forward();
  run.backward();
  const std::vector<Values> first = {run.out.values(), run.dq.values(), run.dk.values(),
                                     run.dv.values()};
  run.forward();
  run.backward();
  EXPECT_EQ(run.out.values(), first[0]);
  EXPECT_EQ(run.dq.values(), first[1]);
  EXPECT_EQ(run.dk.values(), first[2]);
  EXPECT_EQ(run.dv.values(), first[3]);
}

INSTANTIATE_TEST_SUITE_P(HeadDims, AttentionWidths, ::testing::Values(64, 96, 128),
                         [](const auto& width) { return std::to_string(width.param); });

}  // namespace
}  // namespace phalanx::testing
