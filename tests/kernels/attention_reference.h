// Attention as its definition says, in f64 and with a full matrix of visible pairs: what the tests
// compare the blocked kernels with. Also the error each result may have.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/backend.h"

namespace phalanx::testing {
using Values = std::vector<double>;

/// One attention problem: shape, mask and which rows are queries.
struct AttentionCase {
  AttentionMask mask;
  int64_t batch = 1, groups = 1, queries = 1, keys = 1, per_group = 1, head_dim = 8;
  int64_t query_copies = 0;  // 0: all of mask.copies
  int64_t first_query_copy = 0, query_offset = 0, key_offset = 0;
  std::vector<int32_t> document_start = {};                   // [B, Sq] or empty
  std::vector<PositionRange> query_runs = {}, key_runs = {};  // empty: one from the offset on
  int64_t first_key_copy = 0, key_copies = 0;                 // 0: all from the first one on

  int64_t num_query_copies() const { return query_copies > 0 ? query_copies : mask.copies; }
  int64_t rows_per_position() const { return num_query_copies() * per_group; }
  int64_t num_rows() const { return batch * groups * queries * rows_per_position(); }
  int64_t heads() const { return groups * per_group; }
  Shape query_shape() const { return {batch, groups, queries, rows_per_position(), head_dim}; }
  int64_t num_key_copies() const {
    return key_copies > 0 ? key_copies : mask.copies - first_key_copy;
  }
  Shape key_shape() const { return {num_key_copies(), batch, groups, keys, head_dim}; }
  Shape out_shape() const { return {queries, batch, num_query_copies(), heads() * head_dim}; }
  Shape row_shape() const { return {batch, groups, queries, rows_per_position()}; }
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(head_dim)); }

  static int64_t position(const std::vector<PositionRange>& runs, int64_t offset, int64_t index) {
    for (const PositionRange& run : runs) {
      if (index < run.size()) return run.begin + index;
      index -= run.size();
    }
    return offset + index;
  }
  AttentionRow key_row(int64_t slot, int64_t key) const {
    return {position(key_runs, key_offset, key), first_key_copy + slot};
  }
  AttentionRow query_row(int64_t row) const {
    const int64_t slot = row % rows_per_position();
    return {position(query_runs, query_offset, row / rows_per_position() % queries),
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

/// Sum of a[i + d] b[j + d] over d < count, and the sum of the sizes of its terms.
double dot(const Values& a, int64_t i, const Values& b, int64_t j, int64_t count);
double dot_size(const Values& a, int64_t i, const Values& b, int64_t j, int64_t count);

/// out [rows, head dim] and lse [rows] of the definition.
ReferenceForward reference_forward(const AttentionCase& c, const Values& q, const Values& k,
                                   const Values& v);
/// Gradients of sum(dout * out).
ReferenceGradients reference_backward(const AttentionCase& c, const Values& q, const Values& k,
                                      const Values& v, const Values& dout);

inline AttentionMask cswa(int64_t copies, int64_t window, int64_t chunk,
                          WindowUnit unit = WindowUnit::positions) {
  return {.copies = copies, .window = window, .chunk = chunk, .unit = unit};
}

/// Masks, shapes and row subsets that both directions are tested on.
std::vector<AttentionCase> attention_cases();

}  // namespace phalanx::testing
