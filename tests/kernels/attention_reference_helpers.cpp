// The reference attention and the cases that the kernels are compared with it on.
#include "tests/kernels/attention_reference.h"

namespace phalanx::testing {
namespace {

/// Calls visit(copy, key, global key row) for each key that the row sees.
template <class Visit>
void for_each_visible_key(const AttentionCase& c, int64_t row, Visit visit) {
  for (int64_t slot = 0; slot < c.num_key_copies(); ++slot) {
    for (int64_t key = 0; key < c.keys; ++key) {
      if (c.mask.visible(c.query_row(row), c.key_row(slot, key), c.document_of(row)))
        visit(slot, key);
    }
  }
}

}  // namespace

double dot(const std::vector<double>& a, int64_t i, const std::vector<double>& b, int64_t j,
           int64_t count) {
  double sum = 0;
  for (int64_t d = 0; d < count; ++d) {
    sum += a[static_cast<size_t>(i + d)] * b[static_cast<size_t>(j + d)];
  }
  return sum;
}

double dot_size(const std::vector<double>& a, int64_t i, const std::vector<double>& b, int64_t j,
                int64_t count) {
  double sum = 0;
  for (int64_t d = 0; d < count; ++d) {
    sum += std::abs(a[static_cast<size_t>(i + d)] * b[static_cast<size_t>(j + d)]);
  }
  return sum;
}

ReferenceForward reference_forward(const AttentionCase& c, const Values& q, const Values& k,
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

ReferenceGradients reference_backward(const AttentionCase& c, const Values& q, const Values& k,
                                      const Values& v, const Values& dout) {
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

std::vector<AttentionCase> attention_cases() {
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
    AttentionCase runs = documents;  // two runs of queries, three of keys, one of them ahead
    runs.query_runs = {{20, 37}, {110, 138}};
    runs.key_runs = {{0, 9}, {17, 33}, {100, 120}};
    for (int32_t& start : runs.document_start) start = start / 3;
    cases.push_back(runs);
    runs.key_copies = 1;
    cases.push_back(runs);
    if (mask.copies == 1) continue;
    runs.key_copies = 0;
    runs.first_key_copy = 1;
    cases.push_back(runs);
  }
  return cases;
}

}  // namespace phalanx::testing
