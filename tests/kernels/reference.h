// Naive f64 loops of every op except attention, written from the formulas alone: what backends are
// compared with. Slow on purpose; nothing here is shared with the ops.
#pragma once

#include "tests/kernels/op_test.h"

namespace phalanx::test {

inline Array reference_matmul(const Array& a, const Array& b, const MatmulOptions& options) {
  const bool ta = options.a == Transpose::yes;
  const bool tb = options.b == Transpose::yes;
  const int64_t m = a.shape[ta ? 1 : 0];
  const int64_t k = a.shape[ta ? 0 : 1];
  const int64_t n = b.shape[tb ? 0 : 1];
  Array c({m, n});
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j)
      for (int64_t l = 0; l < k; ++l)
        c[i * n + j] += a[ta ? l * m + i : i * k + l] * b[tb ? j * k + l : l * n + j];
  return c;
}

/// y [rows, width]; the normalised value is rounded to `dtype` before the weight.
inline Array reference_rms_norm(const Array& x, const Array& weight, double epsilon, DType dtype) {
  const int64_t width = x.shape.back();
  Array y(x.shape);
  for (int64_t row = 0; row < x.shape.rows(); ++row) {
    double squares = 0.0;
    for (int64_t i = 0; i < width; ++i) squares += x[row * width + i] * x[row * width + i];
    const double rms = std::sqrt(squares / static_cast<double>(width) + epsilon);
    for (int64_t i = 0; i < width; ++i)
      y[row * width + i] = round_to(dtype, x[row * width + i] / rms) * weight[i];
  }
  return y;
}

inline double reference_silu(double gate) {
  return gate / (1.0 + std::exp(-gate));
}

inline Array reference_swiglu(const Array& gate_up) {
  const int64_t width = gate_up.shape.back() / 2;
  Array act(gate_up.shape.with_last(width));
  for (int64_t row = 0; row < act.shape.rows(); ++row)
    for (int64_t i = 0; i < width; ++i)
      act[row * width + i] =
          reference_silu(gate_up[row * 2 * width + i]) * gate_up[row * 2 * width + width + i];
  return act;
}

/// What `split_heads` needs beside options, as f64 arrays.
struct HeadsReference {
  SplitHeads options;
  Shape shape;  // of the heads tensor
  Array weight{{0}};
  Array row_sums{{0}};
  Array table{{0}};
  Array position_ids{{0}};  // [S, B], empty: 0..S-1 from options.first_position

  /// Index in the heads tensor of element `i` of head h of copy k of position s of sequence b.
  int64_t heads_index(int64_t s, int64_t b, int64_t k, int64_t h, int64_t i) const {
    const Shape& y = shape;
    if (options.layout == HeadLayout::keys)
      return (((k * y[1] + b) * y[2] + h) * y[3] + s) * y[4] + i;
    const int64_t per_group = y[3] / options.copies;
    const int64_t g = h / per_group;
    return (((b * y[1] + g) * y[2] + s) * y[3] + k * per_group + h % per_group) * y[4] + i;
  }

  Array forward(const Array& x) const {
    const bool keys = options.layout == HeadLayout::keys;
    const int64_t positions = shape[keys ? 3 : 2];
    const int64_t sequences = shape[keys ? 1 : 0];
    const int64_t heads = keys ? shape[2] : shape[1] * shape[3] / options.copies;
    Array y(shape);
    for (int64_t s = 0; s < positions; ++s)
      for (int64_t b = 0; b < sequences; ++b)
        for (int64_t k = 0; k < options.copies; ++k)
          for (int64_t h = 0; h < heads; ++h) head(y, x, {s, b, k, h, sequences});
    return y;
  }

 private:
  struct Place {
    int64_t s, b, k, h, sequences;
  };

  void head(Array& y, const Array& x, const Place& at) const {
    const int64_t dim = shape[4];
    const int64_t token = at.s * at.sequences + at.b;
    const int64_t row = token * options.copies + at.k;
    const int64_t first = row * x.shape.back() + options.column + at.h * dim;
    std::vector<double> value(static_cast<size_t>(dim));
    const double rms = norm_divisor(x, row, first);
    for (int64_t i = 0; i < dim; ++i) value[static_cast<size_t>(i)] = x[first + i];
    if (options.norm != HeadNorm::none)
      for (int64_t i = 0; i < dim; ++i) {
        const int64_t w = options.norm == HeadNorm::full_width ? at.h * dim + i : i;
        value[static_cast<size_t>(i)] = value[static_cast<size_t>(i)] / rms * weight[w];
      }
    double position = static_cast<double>(options.first_position + at.s);
    if (position_ids.numel() > 0) position = position_ids[token];
    auto p = static_cast<int64_t>(position);
    if (options.copy_position == CopyPosition::flattened)
      p = p * options.total_copies + options.first_copy + at.k;
    for (int64_t i = 0; i < dim; ++i) {
      double result = value[static_cast<size_t>(i)];
      if (table.numel() > 0) {
        const bool upper = i >= dim / 2;
        const int64_t pair = upper ? i - dim / 2 : i + dim / 2;
        const double c = table[p * dim + i % (dim / 2)];
        const double sine = table[p * dim + dim / 2 + i % (dim / 2)];
        result = result * c + (upper ? 1.0 : -1.0) * value[static_cast<size_t>(pair)] * sine;
      }
      y[heads_index(at.s, at.b, at.k, at.h, i)] = result;
    }
  }

  double norm_divisor(const Array& x, int64_t row, int64_t first) const {
    const int64_t dim = shape[4];
    double squares = 0.0;
    double width = static_cast<double>(dim);
    if (options.norm == HeadNorm::full_width) {
      squares = row_sums[row];
      width = static_cast<double>(options.norm_width);
    } else {
      for (int64_t i = 0; i < dim; ++i) squares += x[first + i] * x[first + i];
    }
    return std::sqrt(squares / width + options.epsilon);
  }
};

/// Loss and logit gradient of softmax cross-entropy with z-loss, over the first `vocab` columns.
struct CrossEntropyReference {
  double loss = 0.0;
  double lse_squares = 0.0;
  Array dlogits{{0}};

  CrossEntropyReference(const Array& logits, const Array& targets, int64_t vocab,
                        const CrossEntropyOptions& options)
      : dlogits(logits.shape) {
    const int64_t width = logits.shape.back();
    for (int64_t r = 0; r < logits.shape.rows(); ++r) {
      if (targets[r] < 0) continue;
      double largest = logits[r * width];
      for (int64_t i = 0; i < vocab; ++i) largest = std::max(largest, logits[r * width + i]);
      double sum = 0.0;
      for (int64_t i = 0; i < vocab; ++i) sum += std::exp(logits[r * width + i] - largest);
      const double lse = largest + std::log(sum);
      const auto target = static_cast<int64_t>(targets[r]);
      loss += lse - logits[r * width + target];
      lse_squares += lse * lse;
      for (int64_t i = 0; i < vocab; ++i) {
        const double softmax = std::exp(logits[r * width + i] - lse);
        const double onehot = i == target ? 1.0 : 0.0;
        dlogits[r * width + i] =
            options.loss_scale * ((1.0 + 2.0 * options.z_loss * lse) * softmax - onehot);
      }
    }
  }
};

}  // namespace phalanx::test
