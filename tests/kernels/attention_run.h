// Operands of an attention case, the kernels run on them, and how far results are from the
// reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/attention.h"
#include "tests/kernels/attention_reference.h"

namespace phalanx::testing {

/// Values of T and the same values in f64.
template <class T>
struct Operand {
  std::vector<T> data;
  explicit Operand(int64_t count) : data(static_cast<size_t>(count)) {}
  Operand(int64_t count, uint64_t seed) : Operand(count) {
    std::mt19937_64 engine(seed);
    std::normal_distribution<double> normal;
    for (T& x : data) x = T(static_cast<Accumulator<T>>(normal(engine)));
  }
  void poison() {
    for (T& x : data) x = T(std::numeric_limits<Accumulator<T>>::quiet_NaN());
  }
  Tensor tensor(const Shape& shape) { return cpu_tensor(data.data(), shape); }
  Values values() const {
    Values result;
    for (const T& x : data) result.push_back(static_cast<double>(static_cast<Accumulator<T>>(x)));
    return result;
  }
};

/// Operands and results of one case; results hold NaN until they are computed.
template <class T>
struct AttentionRun {
  using Real = Accumulator<T>;
  AttentionCase c;
  Operand<T> q, k, v, dout, out, dq, dk, dv;
  Operand<Real> lse, delta;

  explicit AttentionRun(const AttentionCase& setup, uint64_t seed = 1)
      : c(setup),
        q(c.query_shape().numel(), seed),
        k(c.key_shape().numel(), seed + 1),
        v(c.key_shape().numel(), seed + 2),
        dout(c.out_shape().numel(), seed + 3),
        out(c.out_shape().numel()),
        dq(c.query_shape().numel()),
        dk(c.key_shape().numel()),
        dv(c.key_shape().numel()),
        lse(c.num_rows()),
        delta(c.num_rows()) {
    if (c.query_runs.empty()) c.query_runs = {{c.query_offset, c.query_offset + c.queries}};
    if (c.key_runs.empty()) c.key_runs = {{c.key_offset, c.key_offset + c.keys}};
  }

  AttentionInputs inputs() {
    return {.q = q.tensor(c.query_shape()),
            .k = k.tensor(c.key_shape()),
            .v = v.tensor(c.key_shape()),
            .mask = c.mask,
            .document_start = c.document_start.empty()
                                  ? Tensor{}
                                  : cpu_tensor(c.document_start.data(), {c.batch, c.queries}),
            .scale = c.scale(),
            .query_copies = c.num_query_copies(),
            .first_query_copy = c.first_query_copy,
            .first_key_copy = c.first_key_copy,
            .query_runs = c.query_runs,
            .key_runs = c.key_runs};
  }
  void forward(int num_threads = 0) {
    out.poison();
    lse.poison();
    cpu_attention_forward(out.tensor(c.out_shape()), lse.tensor(c.row_shape()), inputs(),
                          num_threads);
  }
  void backward(int num_threads = 0) {
    for (Operand<T>* x : {&dq, &dk, &dv}) x->poison();
    delta.poison();
    cpu_attention_backward({.gradients = {.dq = dq.tensor(c.query_shape()),
                                          .dk = dk.tensor(c.key_shape()),
                                          .dv = dv.tensor(c.key_shape())},
                            .delta = delta.tensor(c.row_shape()),
                            .dout = dout.tensor(c.out_shape()),
                            .out = out.tensor(c.out_shape()),
                            .lse = lse.tensor(c.row_shape())},
                           inputs(), num_threads);
  }
};

inline constexpr double kTolerance = 4.0;  // the c of "c * eps * size", for all comparisons

/// Largest |got - expected| / (c * eps * size); at most 1 is right. NaN counts as infinite.
template <class T>
double error_ratio(const Operand<T>& got, const Sums& expected) {
  double worst = 0;
  const Values values = got.values();
  for (size_t i = 0; i < values.size(); ++i) {
    const double error = std::abs(values[i] - expected.value[i]);
    if (error == 0) continue;
    const double ratio = error / (kTolerance * dtype_epsilon(DTypeOf<T>::value) * expected.size[i]);
    worst = std::max(worst, std::isnan(ratio) ? std::numeric_limits<double>::infinity() : ratio);
  }
  return worst;
}

/// The same for lse; equal infinities are right.
template <class Real>
double lse_error_ratio(const Operand<Real>& got, const ReferenceForward& expected) {
  double worst = 0;
  for (size_t i = 0; i < expected.lse.size(); ++i) {
    const double value = got.data[i];
    if (value == expected.lse[i]) continue;
    const double ratio = std::abs(value - expected.lse[i]) /
                         (kTolerance * dtype_epsilon(DTypeOf<Real>::value) * expected.lse_size[i]);
    worst = std::max(worst, std::isnan(ratio) ? std::numeric_limits<double>::infinity() : ratio);
  }
  return worst;
}

}  // namespace phalanx::testing
