// Attention as its definition says, in f64 and with a full matrix of visible pairs: what the tests
// compare the blocked kernels with. Also the error each result may have.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <random>
#include <vector>

#include "kernels/cpu/attention.h"

namespace phalanx::testing {

/// One attention problem: shape, mask and which rows are queries.
struct AttentionCase {
  AttentionMask mask;
  int64_t batch = 1, groups = 1, queries = 1, keys = 1, per_group = 1, head_dim = 8;
  int64_t query_copies = 0;  // 0: all of mask.copies
  int64_t first_query_copy = 0, query_offset = 0, key_offset = 0;
  std::vector<int32_t> document_start = {};  // [B, Sq] or empty

  int64_t num_query_copies() const { return query_copies > 0 ? query_copies : mask.copies; }
  int64_t rows_per_position() const { return num_query_copies() * per_group; }
  int64_t num_rows() const { return batch * groups * queries * rows_per_position(); }
  int64_t heads() const { return groups * per_group; }
  Shape query_shape() const { return {batch, groups, queries, rows_per_position(), head_dim}; }
  Shape key_shape() const { return {mask.copies, batch, groups, keys, head_dim}; }
  Shape out_shape() const { return {queries, batch, num_query_copies(), heads() * head_dim}; }
  Shape row_shape() const { return {batch, groups, queries, rows_per_position()}; }
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(head_dim)); }

  AttentionRow query_row(int64_t row) const {
    const int64_t slot = row % rows_per_position();
    return {query_offset + row / rows_per_position() % queries,
            first_query_copy + slot / per_group};
  }
  int64_t pair_of(int64_t row) const { return row / rows_per_position() / queries; }
  int64_t document_of(int64_t row) const {
    if (document_start.empty()) return 0;
    const int64_t query = row / rows_per_position() % queries;
    return document_start[static_cast<size_t>(pair_of(row) / groups * queries + query)];
  }
  int64_t key_index(int64_t copy, int64_t pair, int64_t key) const {
    return ((copy * batch * groups + pair) * keys + key) * head_dim;
  }
  int64_t out_index(int64_t row) const {
    const int64_t pair = pair_of(row);
    const int64_t query = row / rows_per_position() % queries;
    const int64_t slot = row % rows_per_position();
    const int64_t copy = slot / per_group;
    const int64_t head = pair % groups * per_group + slot % per_group;
    return (((query * batch + pair / groups) * num_query_copies() + copy) * heads() + head) *
           head_dim;
  }
};

/// Values together with the sum of the sizes of the terms they were made of: rounding errors are
/// proportional to the latter.
struct Sums {
  std::vector<double> value, size;
  explicit Sums(int64_t count) : value(static_cast<size_t>(count)), size(value) {}
  void add(int64_t index, double term, double term_size) {
    value[static_cast<size_t>(index)] += term;
    size[static_cast<size_t>(index)] += term_size;
  }
};

struct ReferenceForward {
  Sums out;
  std::vector<double> lse;
  /// Per row: the size of the terms of lse. A weight exp(score - lse) is off by about
  /// eps * (size of the score's terms + this).
  std::vector<double> lse_size;
};
struct ReferenceGradients {
  Sums dq, dk, dv;
};

/// Calls visit(copy, key, global key row) for each key that the row sees.
template <class Visit>
void for_each_visible_key(const AttentionCase& c, int64_t row, Visit visit) {
  for (int64_t copy = 0; copy < c.mask.copies; ++copy) {
    for (int64_t key = 0; key < c.keys; ++key) {
      const AttentionRow key_row{c.key_offset + key, copy};
      if (c.mask.visible(c.query_row(row), key_row, c.document_of(row))) visit(copy, key);
    }
  }
}

inline double dot(const std::vector<double>& a, int64_t i, const std::vector<double>& b, int64_t j,
                  int64_t count) {
  double sum = 0;
  for (int64_t d = 0; d < count; ++d) {
    sum += a[static_cast<size_t>(i + d)] * b[static_cast<size_t>(j + d)];
  }
  return sum;
}

inline double dot_size(const std::vector<double>& a, int64_t i, const std::vector<double>& b,
                       int64_t j, int64_t count) {
  double sum = 0;
  for (int64_t d = 0; d < count; ++d) {
    sum += std::abs(a[static_cast<size_t>(i + d)] * b[static_cast<size_t>(j + d)]);
  }
  return sum;
}

using Values = std::vector<double>;

inline ReferenceForward reference_forward(const AttentionCase& c, const Values& q, const Values& k,
                                          const Values& v) {
  ReferenceForward result{Sums(c.num_rows() * c.head_dim),
                          Values(static_cast<size_t>(c.num_rows())),
                          Values(static_cast<size_t>(c.num_rows()))};
  for (int64_t row = 0; row < c.num_rows(); ++row) {
    const int64_t pair = c.pair_of(row);
    double total = 0;
    double total_size = 0;
    for_each_visible_key(c, row, [&](int64_t copy, int64_t key) {
      const int64_t at = c.key_index(copy, pair, key);
      const double weight = std::exp(c.scale() * dot(q, row * c.head_dim, k, at, c.head_dim));
      total += weight;
      total_size += weight * c.scale() * dot_size(q, row * c.head_dim, k, at, c.head_dim);
    });
    const double lse = std::log(total);
    const double lse_size = 1 + std::abs(lse) + (total > 0 ? total_size / total : 0);
    result.lse[static_cast<size_t>(row)] = lse;
    result.lse_size[static_cast<size_t>(row)] = lse_size;
    for_each_visible_key(c, row, [&](int64_t copy, int64_t key) {
      const int64_t at = c.key_index(copy, pair, key);
      const double s = c.scale() * dot(q, row * c.head_dim, k, at, c.head_dim);
      const double s_size = c.scale() * dot_size(q, row * c.head_dim, k, at, c.head_dim);
      const double p = std::exp(s) / total;
      for (int64_t d = 0; d < c.head_dim; ++d) {
        const double term = p * v[static_cast<size_t>(at + d)];
        result.out.add(c.out_index(row) + d, term, std::abs(term) * (s_size + lse_size));
      }
    });
  }
  return result;
}

inline ReferenceGradients reference_backward(const AttentionCase& c, const Values& q,
                                             const Values& k, const Values& v, const Values& dout) {
  const ReferenceForward saved = reference_forward(c, q, k, v);
  const auto key_count = static_cast<int64_t>(k.size());
  ReferenceGradients g{Sums(c.num_rows() * c.head_dim), Sums(key_count), Sums(key_count)};
  for (int64_t row = 0; row < c.num_rows(); ++row) {
    const int64_t at_q = row * c.head_dim;
    const int64_t at_out = c.out_index(row);
    const double delta = dot(dout, at_out, saved.out.value, at_out, c.head_dim);
    const double delta_size = dot_size(dout, at_out, saved.out.value, at_out, c.head_dim);
    for_each_visible_key(c, row, [&](int64_t copy, int64_t key) {
      const int64_t at = c.key_index(copy, c.pair_of(row), key);
      const double s = c.scale() * dot(q, at_q, k, at, c.head_dim);
      const double s_size = saved.lse_size[static_cast<size_t>(row)] +
                            c.scale() * dot_size(q, at_q, k, at, c.head_dim);
      const double p = std::exp(s - saved.lse[static_cast<size_t>(row)]);
      const double ds = p * (dot(dout, at_out, v, at, c.head_dim) - delta);
      const double ds_size = p * s_size * (dot_size(dout, at_out, v, at, c.head_dim) + delta_size);
      for (int64_t d = 0; d < c.head_dim; ++d) {
        const double qd = c.scale() * q[static_cast<size_t>(at_q + d)];
        const double kd = c.scale() * k[static_cast<size_t>(at + d)];
        const double dod = dout[static_cast<size_t>(at_out + d)];
        g.dq.add(at_q + d, ds * kd, ds_size * std::abs(kd));
        g.dk.add(at + d, ds * qd, ds_size * std::abs(qd));
        g.dv.add(at + d, p * dod, p * s_size * std::abs(dod));
      }
    });
  }
  return g;
}

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
        delta(c.num_rows()) {}

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
            .query_offset = c.query_offset,
            .key_offset = c.key_offset};
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

inline AttentionMask cswa(int64_t copies, int64_t window, int64_t chunk,
                          WindowUnit unit = WindowUnit::positions) {
  return {.copies = copies, .window = window, .chunk = chunk, .unit = unit};
}

/// Masks, shapes and row subsets that both directions are tested on.
inline std::vector<AttentionCase> attention_cases() {
  constexpr int64_t kEndless = AttentionMask::kNoChunk;
  std::vector<AttentionMask> masks = {cswa(1, 1, kEndless),
                                      cswa(2, 16, 32),
                                      cswa(3, 16, 32),
                                      cswa(3, 1, kEndless),
                                      cswa(3, 4, kEndless),
                                      cswa(5, 4, 4),
                                      cswa(3, 16, 32, WindowUnit::hidden_tokens),
                                      cswa(3, 5, 7, WindowUnit::hidden_tokens)};
  masks.push_back({.copies = 3, .visibility = CopyVisibility::naive});
  masks.push_back({.copies = 2,
                   .window = 4,
                   .pattern = KeyPattern::sink_window,
                   .block = 16,
                   .sink_blocks = 1,
                   .window_blocks = 2});
  masks.push_back({.copies = 2,
                   .window = 4,
                   .pattern = KeyPattern::strided,
                   .block = 8,
                   .stride_blocks = 3,
                   .local_blocks = 1});
  masks.push_back({.copies = 2,
                   .visibility = CopyVisibility::naive,
                   .pattern = KeyPattern::strided,
                   .block = 5,
                   .stride_blocks = 2});
  std::vector<AttentionCase> cases;
  const int64_t sizes[] = {1, 7, 33, 130};
  const int64_t dims[] = {8, 16, 48, 64, 96, 128};
  size_t number = 0;
  for (const AttentionMask& mask : masks) {
    for (const int64_t size : sizes) {
      // The reference is slow: its largest problems are narrow.
      const bool large = size * mask.copies > 150;
      const int64_t per_group = large ? 1 : int64_t{1} << number % 3;
      const int64_t head_dim = large ? 16 : dims[number % 6];
      ++number;
      cases.push_back({.mask = mask,
                       .queries = size,
                       .keys = size,
                       .per_group = per_group,
                       .head_dim = head_dim});
    }
    AttentionCase base = {
        .mask = mask, .batch = 2, .groups = 2, .queries = 45, .keys = 45, .head_dim = 16};
    AttentionCase last_copy = base;
    last_copy.query_copies = 1;
    last_copy.first_query_copy = mask.copies - 1;
    cases.push_back(last_copy);
    AttentionCase documents = base;
    for (int32_t position = 0; position < 90; ++position) {
      const int32_t length = position < 45 ? 33 : 9;
      documents.document_start.push_back(position % 45 / length * length);
    }
    cases.push_back(documents);
    AttentionCase part = base;  // later queries against a middle range of keys; some see nothing
    part.queries = 30;
    part.query_offset = 40;
    part.key_offset = 20;
    part.keys = 37;
    cases.push_back(part);
    AttentionCase ahead = base;  // keys in the future of the first queries
    ahead.query_offset = 3;
    ahead.key_offset = 30;
    ahead.keys = 45;
    cases.push_back(ahead);
  }
  return cases;
}

}  // namespace phalanx::testing
