// Attention put together from parts over disjoint keys equals attention over all of them, forward
// and backward.
#include <gtest/gtest.h>

#include "kernels/make_backend.h"
#include "tests/kernels/attention_run.h"

namespace phalanx::testing {
namespace {

using Runs = std::vector<PositionRange>;

/// Some copies of keys at some positions.
struct KeyPart {
  int64_t first_copy, copies;
  Runs runs;
};

/// Two sets of runs that together are [0, 70), for all copies or for originals and hidden apart.
std::vector<KeyPart> key_parts(const AttentionMask& mask) {
  std::vector<KeyPart> parts;
  for (const Runs& runs : {Runs{{0, 13}, {29, 41}}, Runs{{13, 29}, {41, 70}}}) {
    parts.push_back({0, 1, runs});
    if (mask.copies > 1) parts.push_back({1, mask.copies - 1, runs});
  }
  return parts;
}

/// Queries at two runs of a sequence of 70, and every key of it.
std::vector<AttentionCase> whole_cases() {
  std::vector<AttentionCase> cases;
  for (const AttentionCase& from : attention_cases()) {
    if (from.queries != 45 || from.batch != 2) continue;  // one per mask, copies and documents
    if (from.document_start.empty() && from.query_copies == 0) continue;
    AttentionCase c = from;
    c.key_copies = c.first_key_copy = 0;
    c.query_runs = {{5, 25}, {44, 69}};
    c.key_runs = {};
    c.keys = 70;
    c.key_offset = 0;
    cases.push_back(c);
  }
  return cases;
}

template <class T>
class AttentionMerge : public ::testing::Test {
 protected:
  using Real = Accumulator<T>;

  /// `x` [K, B, G, 70, D] at the part.
  Tensor part_of(const Tensor& x, const KeyPart& part) {
    int64_t count = 0;
    for (const PositionRange& run : part.runs) count += run.size();
    const Tensor copies = x.slice(part.first_copy, part.first_copy + part.copies);
    const Tensor result = device.zeros(copies.shape.with_dim(3, count), x.dtype);
    ops->gather_positions(result, copies, part.runs);
    return result;
  }
  AttentionInputs part_inputs(AttentionInputs whole, const KeyPart& part) {
    whole.k = part_of(whole.k, part);
    whole.v = part_of(whole.v, part);
    whole.first_key_copy = part.first_copy;
    whole.key_runs = part.runs;
    return whole;
  }
  std::vector<Real> downloaded(const Tensor& x) {
    std::vector<Real> values(static_cast<size_t>(x.numel()));
    ops->download(values.data(), x);
    return values;
  }
  Operand<T> rounded(const Tensor& sum) {
    Operand<T> result(sum.numel());
    const std::vector<Real> values = downloaded(sum);
    std::transform(values.begin(), values.end(), result.data.begin(), [](Real x) { return T(x); });
    return result;
  }

  std::unique_ptr<Backend> ops = make_backend(test::test_device());
  DeviceTensors device{*ops};
};
using Types = ::testing::Types<float, BFloat16, double>;
TYPED_TEST_SUITE(AttentionMerge, Types);

TYPED_TEST(AttentionMerge, PartsEqualTheWhole) {
  using T = TypeParam;
  using Real = Accumulator<T>;
  const DType dtype = DTypeOf<T>::value;
  const DType acc = DTypeOf<Real>::value;
  const std::vector<AttentionCase> cases = whole_cases();
  ASSERT_GE(cases.size(), 20U);
  for (size_t number = 0; number < cases.size(); ++number) {
    SCOPED_TRACE(number);
    AttentionRun<T> run(cases[number]);
    const AttentionCase& c = run.c;
    const AttentionInputs whole = this->device.upload(run.inputs());

    const Tensor out = this->device.zeros(c.out_shape(), acc);
    Operand<Real> host_lse(c.num_rows());
    for (Real& x : host_lse.data) x = -std::numeric_limits<Real>::infinity();
    const Tensor lse = this->device.upload(host_lse.tensor(c.row_shape()));
    const Tensor part_out = this->device.zeros(c.out_shape(), dtype);
    const Tensor part_lse = this->device.zeros(c.row_shape(), acc);
    for (const KeyPart& part : key_parts(c.mask)) {
      this->ops->attention_forward(part_out, part_lse, this->part_inputs(whole, part));
      this->ops->attention_merge(out, lse, part_out, part_lse);
    }
    const ReferenceForward expected =
        reference_forward(c, run.q.values(), run.k.values(), run.v.values());
    Operand<T> merged = this->rounded(out);
    EXPECT_LE(error_ratio(merged, expected.out), 1.0);
    host_lse.data = this->downloaded(lse);
    EXPECT_LE(lse_error_ratio(host_lse, expected), 1.0);

    const Tensor dq_part = this->device.zeros(c.query_shape(), dtype);
    const Tensor dq = this->device.zeros(c.query_shape(), acc);
    const Tensor dk = this->device.zeros(c.key_shape(), acc);
    const Tensor dv = this->device.zeros(c.key_shape(), acc);
    const Tensor delta = this->device.zeros(c.row_shape(), acc);
    const Tensor dout = this->device.upload(run.dout.tensor(c.out_shape()));
    const Tensor merged_out = this->device.upload(merged.tensor(c.out_shape()));
    const PositionRange all_rows[] = {{0, dq.shape.rows()}};
    for (const KeyPart& part : key_parts(c.mask)) {
      const AttentionInputs inputs = this->part_inputs(whole, part);
      const Tensor dk_part = this->device.zeros(inputs.k.shape, dtype);
      const Tensor dv_part = this->device.zeros(inputs.k.shape, dtype);
      this->ops->attention_backward({.gradients = {dq_part, dk_part, dv_part},
                                     .delta = delta,
                                     .dout = dout,
                                     .out = merged_out,
                                     .lse = lse},
                                    inputs);
      const int64_t end = part.first_copy + part.copies;
      this->ops->accumulate_positions(dq.as_matrix(), dq_part.as_matrix(), all_rows);
      this->ops->accumulate_positions(dk.slice(part.first_copy, end), dk_part, part.runs);
      this->ops->accumulate_positions(dv.slice(part.first_copy, end), dv_part, part.runs);
    }
    const ReferenceGradients gradients =
        reference_backward(c, run.q.values(), run.k.values(), run.v.values(), run.dout.values());
    EXPECT_LE(error_ratio(this->rounded(dq), gradients.dq), 1.0);
    EXPECT_LE(error_ratio(this->rounded(dk), gradients.dk), 1.0);
    EXPECT_LE(error_ratio(this->rounded(dv), gradients.dv), 1.0);
  }
}

TYPED_TEST(AttentionMerge, NothingSeenOnOneSideOrOnBoth) {
  using Real = Accumulator<TypeParam>;
  constexpr Real kNothing = -std::numeric_limits<Real>::infinity();
  std::vector<Real> out = {0, 0, 3, 4, 0, 0};
  std::vector<Real> lse = {kNothing, Real(0.5), kNothing};
  std::vector<TypeParam> part = {TypeParam(1.0F), TypeParam(2.0F), TypeParam(0.0F),
                                 TypeParam(0.0F), TypeParam(0.0F), TypeParam(0.0F)};
  std::vector<Real> part_lse = {Real(-2), kNothing, kNothing};
  const Tensor sum = this->device.upload(cpu_tensor(out.data(), {3, 1, 1, 2}));
  const Tensor sum_lse = this->device.upload(cpu_tensor(lse.data(), {1, 1, 3, 1}));
  this->ops->attention_merge(sum, sum_lse,
                             this->device.upload(cpu_tensor(part.data(), {3, 1, 1, 2})),
                             this->device.upload(cpu_tensor(part_lse.data(), {1, 1, 3, 1})));
  EXPECT_EQ(this->downloaded(sum), (std::vector<Real>{1, 2, 3, 4, 0, 0}));
  EXPECT_EQ(this->downloaded(sum_lse), (std::vector<Real>{-2, Real(0.5), kNothing}));
}

}  // namespace
}  // namespace phalanx::testing
