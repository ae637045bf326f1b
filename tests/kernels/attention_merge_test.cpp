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

  Tensor keep(const Shape& shape, DType dtype) {
    blocks_.emplace_back(static_cast<size_t>(shape.numel() * dtype_bytes(dtype)), char{0});
    return {blocks_.back().data(), shape, dtype, Device::cpu};
  }
  /// `x` [K, B, G, 70, D] at the part.
  Tensor part_of(const Tensor& x, const KeyPart& part) {
    int64_t count = 0;
    for (const PositionRange& run : part.runs) count += run.size();
    const Tensor copies = x.slice(part.first_copy, part.first_copy + part.copies);
    const Tensor result = keep(copies.shape.with_dim(3, count), x.dtype);
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
  static Operand<T> rounded(const Tensor& sum) {
    Operand<T> result(sum.numel());
    for (int64_t i = 0; i < sum.numel(); ++i)
      result.data[static_cast<size_t>(i)] = T(sum.as<Real>()[i]);
    return result;
  }

  std::unique_ptr<Backend> ops = make_backend(Device::cpu);

 private:
  std::vector<std::vector<char>> blocks_;
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
    const AttentionInputs whole = run.inputs();

    const Tensor out = this->keep(c.out_shape(), acc);
    Operand<Real> lse(c.num_rows());
    for (Real& x : lse.data) x = -std::numeric_limits<Real>::infinity();
    const Tensor part_out = this->keep(c.out_shape(), dtype);
    const Tensor part_lse = this->keep(c.row_shape(), acc);
    for (const KeyPart& part : key_parts(c.mask)) {
      this->ops->attention_forward(part_out, part_lse, this->part_inputs(whole, part));
      this->ops->attention_merge(out, lse.tensor(c.row_shape()), part_out, part_lse);
    }
    const ReferenceForward expected =
        reference_forward(c, run.q.values(), run.k.values(), run.v.values());
    Operand<T> merged = this->rounded(out);
    EXPECT_LE(error_ratio(merged, expected.out), 1.0);
    EXPECT_LE(lse_error_ratio(lse, expected), 1.0);

    const Tensor dq_part = this->keep(c.query_shape(), dtype);
    const Tensor dq = this->keep(c.query_shape(), acc);
    const Tensor dk = this->keep(c.key_shape(), acc);
    const Tensor dv = this->keep(c.key_shape(), acc);
    const PositionRange all_rows[] = {{0, dq.shape.rows()}};
    for (const KeyPart& part : key_parts(c.mask)) {
      const AttentionInputs inputs = this->part_inputs(whole, part);
      const Tensor dk_part = this->keep(inputs.k.shape, dtype);
      const Tensor dv_part = this->keep(inputs.k.shape, dtype);
      this->ops->attention_backward({.gradients = {dq_part, dk_part, dv_part},
                                     .delta = run.delta.tensor(c.row_shape()),
                                     .dout = run.dout.tensor(c.out_shape()),
                                     .out = merged.tensor(c.out_shape()),
                                     .lse = lse.tensor(c.row_shape())},
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
  this->ops->attention_merge(
      cpu_tensor(out.data(), {3, 1, 1, 2}), cpu_tensor(lse.data(), {1, 1, 3, 1}),
      cpu_tensor(part.data(), {3, 1, 1, 2}), cpu_tensor(part_lse.data(), {1, 1, 3, 1}));
  EXPECT_EQ(out, (std::vector<Real>{1, 2, 3, 4, 0, 0}));
  EXPECT_EQ(lse, (std::vector<Real>{-2, Real(0.5), kNothing}));
}

}  // namespace
}  // namespace phalanx::testing
