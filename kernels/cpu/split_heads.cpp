// q, k or v rows to heads and back: norm, then RoPE (half-split, Su et al. 2021), then transpose.
#include <array>
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/head_rows.h"

namespace phalanx {
namespace {

constexpr int64_t kMaxHeadDim = 1024;  // heads pass through buffers on the stack

/// What a row needs beside its elements, for one element type T.
template <class T>
struct HeadContext {
  using Acc = Accumulator<T>;
  using HeadBuffer = std::array<Acc, kMaxHeadDim>;

  HeadContext(const Shape& shape, const SplitHeads& split)
      : options(split), map(shape, split), dim(map.head_dim) {
    check(dim <= kMaxHeadDim, "split_heads: head dim ", dim, " is above ", kMaxHeadDim);
    table = options.rope_table ? options.rope_table.as<float>() : nullptr;
    position_ids = options.position_ids ? options.position_ids.as<int32_t>() : nullptr;
    weight = options.norm == HeadNorm::none ? nullptr : options.weight.as<T>();
    row_sums = options.norm == HeadNorm::full_width ? options.row_sums.as<Acc>() : nullptr;
  }

  /// cos then sin of this row's position; null without rotation.
  const float* angles(int64_t row) const {
    if (table == nullptr) return nullptr;
    const int64_t token = row / map.copies;  // s * B + b
    int64_t position = position_ids != nullptr ? position_ids[token]
                                               : options.first_position + token / map.sequences;
    if (options.copy_position == CopyPosition::flattened)
      position = position * options.total_copies + options.first_copy + row % map.copies;
    return table + position * dim;
  }

  const T* head_weight(int64_t head) const {
    return options.norm == HeadNorm::full_width ? weight + head * dim : weight;
  }

  /// 1 / rms of the head x [D], or of the whole projection.
  Acc rstd(const T* x, int64_t row) const {
    if (row_sums != nullptr) return inverse_root(row_sums[row], options.norm_width);
    Acc sum{};
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < dim; ++i) sum += static_cast<Acc>(x[i]) * static_cast<Acc>(x[i]);
    return inverse_root(sum, dim);
  }

  Acc inverse_root(Acc sum, int64_t width) const {
    return Acc{1} / std::sqrt(sum / static_cast<Acc>(width) + static_cast<Acc>(options.epsilon));
  }

  /// Gradient of a head before its rotation: the rotation by minus the angle.
  void rotate_back(HeadBuffer& out, const T* dy, const float* cosines) const {
    if (cosines == nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) out[static_cast<size_t>(i)] = dy[i];
      return;
    }
    const int64_t half = dim / 2;
    const float* sines = cosines + half;
    Acc* first = out.data();
    Acc* second = first + half;
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
      const auto d1 = static_cast<Acc>(dy[i]);
      const auto d2 = static_cast<Acc>(dy[half + i]);
      first[i] = d1 * static_cast<Acc>(cosines[i]) + d2 * static_cast<Acc>(sines[i]);
      second[i] = d2 * static_cast<Acc>(cosines[i]) - d1 * static_cast<Acc>(sines[i]);
    }
  }

  /// y = rope(norm(x)) for one head.
  void forward(T* y, const T* x, int64_t row, int64_t head) const {
    HeadBuffer normed;
    if (weight == nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) normed[static_cast<size_t>(i)] = x[i];
    } else {
      const Acc inverse = rstd(x, row);
      const T* w = head_weight(head);
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) {
        normed[static_cast<size_t>(i)] =
            round_to<T>(static_cast<Acc>(x[i]) * inverse) * static_cast<Acc>(w[i]);
      }
    }
    rotate(y, normed, angles(row));
  }

  void rotate(T* y, const HeadBuffer& x, const float* cosines) const {
    if (cosines == nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) y[i] = x[static_cast<size_t>(i)];
      return;
    }
    const int64_t half = dim / 2;
    const float* sines = cosines + half;
    const Acc* first = x.data();
    const Acc* second = first + half;
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
      const auto c = static_cast<Acc>(cosines[i]);
      const auto s = static_cast<Acc>(sines[i]);
      y[i] = first[i] * c - second[i] * s;
      y[half + i] = second[i] * c + first[i] * s;
    }
  }

  /// sum of dy' * weight * x * rstd over one head, dy' being dy rotated back.
  Acc norm_dot(const HeadBuffer& dy, const T* x, const T* w, Acc inverse) const {
    Acc sum{};
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < dim; ++i)
      sum += dy[static_cast<size_t>(i)] * static_cast<Acc>(w[i]) * static_cast<Acc>(x[i]);
    return sum * inverse;
  }

  /// dx of one normed head; adds its share of dweight to `share`. `dot_mean` is the norm's dot
  /// divided by its width: dx = rstd * (dy' * weight - x * rstd * dot_mean).
  void norm_backward(T* dx, const HeadBuffer& dy, const T* x, const T* w, Acc inverse, Acc dot_mean,
                     Acc* share) const {
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) {
      const Acc d = dy[static_cast<size_t>(i)];
      const Acc normed = static_cast<Acc>(x[i]) * inverse;
      share[i] += d * normed;
      dx[i] = inverse * (d * static_cast<Acc>(w[i]) - normed * dot_mean);
    }
  }

  const SplitHeads& options;
  HeadRows map;
  int64_t dim;
  const float* table;
  const int32_t* position_ids;
  const T* weight;
  const Acc* row_sums;
};

template <class T>
struct HeadGradients {
  using Acc = Accumulator<T>;
  const HeadContext<T>& context;
  T* dx;
  const T* dy;
  const T* x;           // null without norm
  const Acc* row_dots;  // null unless full_width
  int64_t width;        // of rows of x and dx

  /// One head of one row; `share` [dweight's elements] takes its share of dweight.
  void backward(int64_t row, int64_t head, Acc* share) const {
    typename HeadContext<T>::HeadBuffer gradient;
    const int64_t dim = context.dim;
    const int64_t at = row * width + context.options.column + head * dim;
    context.rotate_back(gradient, dy + context.map.offset(row, head), context.angles(row));
    if (context.weight == nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) dx[at + i] = gradient[static_cast<size_t>(i)];
      return;
    }
    const T* w = context.head_weight(head);
    const Acc inverse = context.rstd(x + at, row);
    const bool full = row_dots != nullptr;
    const Acc dot = full ? row_dots[row] : context.norm_dot(gradient, x + at, w, inverse);
    const Acc mean = dot / static_cast<Acc>(full ? context.options.norm_width : dim);
    context.norm_backward(dx + at, gradient, x + at, w, inverse, mean,
                          share + (full ? head * dim : 0));
  }
};

}  // namespace

void CpuBackend::rope_table_impl(const Tensor& table, double base) {
  const int64_t half = table.shape[1] / 2;
  auto* out = table.as<float>();
  parallel_ranges(num_threads_, table.shape[0], 16, [=](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < half; ++i) {
      const double exponent = -static_cast<double>(i) / static_cast<double>(half);
      const double frequency = std::pow(base, exponent);
      for (int64_t p = begin; p < end; ++p) {
        const double angle = static_cast<double>(p) * frequency;
        out[p * 2 * half + i] = static_cast<float>(std::cos(angle));
        out[p * 2 * half + half + i] = static_cast<float>(std::sin(angle));
      }
    }
  });
}

void CpuBackend::row_sum_squares_impl(const Tensor& sums, const Tensor& x, int64_t column,
                                      int64_t width) {
  dispatch_float(x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const int64_t stride = x.shape.back();
    const T* in = x.as<T>() + column;
    Acc* out = sums.as<Acc>();
    parallel_ranges(num_threads_, x.shape.rows(), row_grain(width),
                    [=](int64_t begin, int64_t end) {
                      for (int64_t row = begin; row < end; ++row) {
                        const T* values = in + row * stride;
                        Acc sum{};
#pragma omp simd reduction(+ : sum)
                        for (int64_t i = 0; i < width; ++i)
                          sum += static_cast<Acc>(values[i]) * static_cast<Acc>(values[i]);
                        out[row] = sum;
                      }
                    });
  });
}

void CpuBackend::split_heads_forward_impl(const Tensor& y, const Tensor& x,
                                          const SplitHeads& options) {
  dispatch_float(x.dtype, [&]<class T>() {
    const HeadContext<T> context(y.shape, options);
    const int64_t heads = context.map.heads();
    const int64_t width = x.shape.back();
    T* out = y.as<T>();
    const T* in = x.as<T>();
    const auto rows = [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t head = 0; head < heads; ++head)
          context.forward(out + context.map.offset(row, head),
                          in + row * width + options.column + head * context.dim, row, head);
    };
    parallel_ranges(num_threads_, context.map.num_rows(), row_grain(heads * context.dim), rows);
  });
}

void CpuBackend::split_heads_row_dots_impl(const Tensor& dots, const Tensor& dy, const Tensor& x,
                                           const SplitHeads& options) {
  dispatch_float(x.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const HeadContext<T> context(dy.shape, options);
    const int64_t heads = context.map.heads();
    const T* gradients = dy.as<T>();
    const T* in = x.as<T>() + options.column;
    Acc* out = dots.as<Acc>();
    const auto rows = [&](int64_t begin, int64_t end) {
      typename HeadContext<T>::HeadBuffer gradient;
      for (int64_t row = begin; row < end; ++row) {
        const T* values = in + row * x.shape.back();
        const Acc inverse = context.rstd(values, row);
        Acc sum{};
        for (int64_t head = 0; head < heads; ++head) {
          context.rotate_back(gradient, gradients + context.map.offset(row, head),
                              context.angles(row));
          sum += context.norm_dot(gradient, values + head * context.dim, context.head_weight(head),
                                  inverse);
        }
        out[row] = sum;
      }
    };
    parallel_ranges(num_threads_, context.map.num_rows(), row_grain(heads * context.dim), rows);
  });
}

void CpuBackend::split_heads_backward_impl(const SplitHeadsBackward& arguments,
                                           const SplitHeads& options) {
  dispatch_float(arguments.dx.dtype, [&]<class T>() {
    using Acc = Accumulator<T>;
    const HeadContext<T> context(arguments.dy.shape, options);
    const int64_t heads = context.map.heads();
    const bool normed = options.norm != HeadNorm::none;
    const bool full = options.norm == HeadNorm::full_width;
    const HeadGradients<T> gradients{.context = context,
                                     .dx = arguments.dx.as<T>(),
                                     .dy = arguments.dy.as<T>(),
                                     .x = normed ? arguments.x.as<T>() : nullptr,
                                     .row_dots = full ? arguments.row_dots.as<Acc>() : nullptr,
                                     .width = arguments.dx.shape.back()};
    const int64_t weights = normed ? options.weight.numel() : 0;
    const FixedParts split(context.map.num_rows());
    Acc* partial = workspace<Acc>(split.parts * weights);
    parallel_ranges(num_threads_, split.parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        Acc* share = partial + part * weights;
        std::fill(share, share + weights, Acc{0});
        for (int64_t row = split.begin(part); row < split.end(part); ++row)
          for (int64_t head = 0; head < heads; ++head) gradients.backward(row, head, share);
      }
    });
    if (normed) add_parts(arguments.dweight.as<Acc>(), partial, split.parts, weights);
  });
}

}  // namespace phalanx
