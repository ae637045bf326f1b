// The op table, part one: copies, products, embedding, norms, SwiGLU and the optimizer against
// naive f64 loops, over odd, unit and uneven shapes. Heads and the loss are in op_table_heads_test.
#include <fmt/format.h>

#include <gmock/gmock.h>

#include "kernels/make_backend.h"
#include "tests/kernels/reference.h"

namespace phalanx::test {
namespace {

class OpTable : public OpTest {};
INSTANTIATE_TEST_SUITE_P(Ops, OpTable, testing::ValuesIn(op_cases()), op_case_name);

const std::vector<Shape> kMatrices = {{1, 1}, {3, 5}, {7, 1}, {1, 33}, {257, 65}, {64, 768}};

TEST_P(OpTable, CopyConvertsBetweenAllFloatingTypes) {
  for (const Shape& shape : kMatrices)
    for (const DType to : {DType::f64, DType::f32, DType::bf16}) {
      const Array x = random_array(shape, dtype, 1);
      const Tensor y = bench.poisoned(shape, to);
      ops.copy(y, bench.upload(x, dtype));
      Array expected = x;
      for (double& value : expected.values) value = round_to(to, value);
      expect_within(bench.download(y), expected, 0.0, "copy " + shape.to_string());
    }
}

TEST_P(OpTable, AddScaleFillZero) {
  for (const Shape& shape : kMatrices) {
    const Array a = random_array(shape, dtype, 1);
    const Array b = random_array(shape, dtype, 2);
    Array sum(shape);
    for (int64_t i = 0; i < sum.numel(); ++i) sum[i] = a[i] + b[i];
    const Tensor y = bench.poisoned(shape, dtype);
    ops.add(y, bench.upload(a, dtype), bench.upload(b, dtype));
    expect_close(bench.download(y), sum, dtype, 1, "add");
    ops.scale(y, -0.75);
    for (double& value : sum.values) value *= -0.75;
    expect_close(bench.download(y), sum, dtype, 1, "scale");
    ops.fill(y, 1.5);
    expect_within(bench.download(y), Array(shape, 1.5), 0.0, "fill");
    const Tensor zeroed = bench.poisoned(shape, dtype);
    ops.zero(zeroed);
    expect_within(bench.download(zeroed), Array(shape), 0.0, "zero");
  }
}

TEST_P(OpTable, TruncatedNormalDrawsAtGlobalIndices) {
  const Philox random(7, "layers.00.attention.q.weight");
  const int64_t columns = 37;
  const Tensor w = bench.poisoned({5, 11}, dtype);
  ops.truncated_normal(w, {.random = random,
                           .stddev = 0.02,
                           .cut = 3.0,
                           .global_columns = columns,
                           .row_begin = 4,
                           .column_begin = 26});
  Array expected({5, 11});
  for (int64_t i = 0; i < 55; ++i) {
    const auto index = static_cast<uint64_t>((4 + i / 11) * columns + 26 + i % 11);
    expected[i] = round_to(dtype, 0.02 * random.truncated_normal(index, 3.0));
  }
  // The draws are the same bits everywhere; the logarithms and angles of a device may differ from
  // the host's in the last bits of a double.
  const bool same_functions = GetParam().device == Device::cpu || dtype != DType::f64;
  expect_within(bench.download(w), expected,
                same_functions ? 0.0 : tolerance(DType::f64, 1, 3.0 * 0.02), "truncated_normal");
}

struct ProductSize {
  int64_t m, n, k;
};

TEST_P(OpTable, MatmulInEveryOrientation) {
  for (const auto& [m, n, k] : std::vector<ProductSize>{
           {1, 1, 1}, {1, 7, 3}, {5, 1, 9}, {33, 65, 17}, {64, 48, 32}, {130, 96, 67}, {4, 5, 0}})
    for (const Transpose ta : {Transpose::no, Transpose::yes})
      for (const Transpose tb : {Transpose::no, Transpose::yes})
        for (const Accumulate accumulate : {Accumulate::no, Accumulate::yes})
          for (const DType result : {dtype, acc}) {
            const MatmulOptions options{.a = ta, .b = tb, .accumulate = accumulate};
            const bool transposed = ta == Transpose::yes;
            const Array a = random_array(transposed ? Shape{k, m} : Shape{m, k}, dtype, 1);
            const Array b =
                random_array(tb == Transpose::yes ? Shape{n, k} : Shape{k, n}, dtype, 2);
            Array expected = reference_matmul(a, b, options);
            const Array before = random_array({m, n}, result, 3);
            const Tensor c = accumulate == Accumulate::yes ? bench.upload(before, result)
                                                           : bench.poisoned({m, n}, result);
            if (accumulate == Accumulate::yes)
              for (int64_t i = 0; i < m * n; ++i) expected[i] += before[i];
            ops.matmul(c, bench.upload(a, dtype), bench.upload(b, dtype), options);
            expect_close(bench.download(c), expected, result, k,
                         fmt::format("matmul {}x{}x{} {}{}{}", m, n, k, static_cast<int>(ta),
                                     static_cast<int>(tb), static_cast<int>(accumulate)));
          }
}

TEST_P(OpTable, Embedding) {
  const int64_t vocab_begin = 10;
  for (const auto& [vocab, hidden, copies] :
       std::vector<ProductSize>{{1, 1, 1}, {13, 7, 2}, {30, 65, 3}}) {
    const Array table = random_array({vocab, hidden}, dtype, 1);
    const Array ids = random_integers({5, 3}, vocab_begin - 3, vocab_begin + vocab + 3, 2);
    const Array dy = random_array({5, 3, copies, hidden}, dtype, 3);
    const Array before = random_array({vocab, hidden}, acc, 4);
    const Tensor y = bench.poisoned(dy.shape, dtype);
    const Tensor dtable = bench.upload(before, acc);
    const Tensor id_tensor = bench.upload(ids, DType::i32);
    ops.embedding_forward(y, bench.upload(table, dtype), id_tensor, vocab_begin);
    ops.embedding_backward(dtable, bench.upload(dy, dtype), id_tensor, vocab_begin);
    Array expected_y(dy.shape);
    Array expected_dtable = before;
    for (int64_t row = 0; row < 15 * copies; ++row) {
      const int64_t local = static_cast<int64_t>(ids[row / copies]) - vocab_begin;
      if (local < 0 || local >= vocab) continue;
      for (int64_t i = 0; i < hidden; ++i) {
        expected_y[row * hidden + i] = table[local * hidden + i];
        expected_dtable[local * hidden + i] += dy[row * hidden + i];
      }
    }
    expect_within(bench.download(y), expected_y, 0.0, "embedding_forward");
    expect_close(bench.download(dtable), expected_dtable, acc, 15 * copies, "embedding_backward");
  }
}

TEST_P(OpTable, SelectAndAccumulateCopy) {
  for (const Shape& shape : std::vector<Shape>{{1, 1, 1, 1}, {3, 2, 3, 5}, {9, 1, 2, 130}})
    for (int64_t copy = 0; copy < shape[2]; ++copy) {
      const Shape one{shape[0], shape[1], shape[3]};
      const Array x = random_array(shape, dtype, 1);
      const Array dy = random_array(one, dtype, 2);
      const Tensor y = bench.poisoned(one, dtype);
      const Tensor dx = bench.upload(x, dtype);
      ops.select_copy(y, dx, copy);
      ops.accumulate_copy(dx, bench.upload(dy, dtype), copy);
      Array selected(one);
      Array accumulated = x;
      for (int64_t i = 0; i < selected.numel(); ++i) {
        const int64_t at = (i / shape[3] * shape[2] + copy) * shape[3] + i % shape[3];
        selected[i] = x[at];
        accumulated[at] += dy[i];
      }
      expect_within(bench.download(y), selected, 0.0, "select_copy");
      expect_close(bench.download(dx), accumulated, dtype, 1, "accumulate_copy");
    }
}

TEST_P(OpTable, RmsNormForwardAndFusedAdd) {
  for (const Shape& shape : kMatrices) {
    const Array a = random_array(shape, dtype, 1);
    const Array b = random_array(shape, dtype, 2);
    const Array weight = random_array({shape[1]}, dtype, 3);
    const Tensor y = bench.poisoned(shape, dtype);
    const Tensor rstd = bench.poisoned({shape[0]}, acc);
    const Tensor w = bench.upload(weight, dtype);
    // A tie of the inner rounding may fall either way: one step of T beside the usual error.
    ops.rms_norm_forward(y, rstd, bench.upload(a, dtype), w, 1e-5);
    const Array norm = reference_rms_norm(a, weight, 1e-5, dtype);
    expect_close(bench.download(y), norm, dtype, shape[1], "rms_norm");

    const Tensor sum = bench.upload(a, dtype);
    const Tensor fused = bench.poisoned(shape, dtype);
    ops.add_rms_norm_forward({.sum = sum,
                              .y = fused,
                              .rstd = rstd,
                              .a = sum,
                              .b = bench.upload(b, dtype),
                              .weight = w,
                              .epsilon = 1e-5});
    Array expected(shape);
    for (int64_t i = 0; i < expected.numel(); ++i) expected[i] = a[i] + b[i];
    const Array stored = bench.download(sum);
    expect_close(stored, expected, dtype, 1, "sum");
    expect_close(bench.download(fused), reference_rms_norm(stored, weight, 1e-5, dtype), dtype,
                 shape[1], "add_rms_norm");
    Array inverse({shape[0]});
    for (int64_t row = 0; row < shape[0]; ++row) {
      double squares = 0.0;
      for (int64_t i = 0; i < shape[1]; ++i) squares += std::pow(stored[row * shape[1] + i], 2);
      inverse[row] = 1.0 / std::sqrt(squares / static_cast<double>(shape[1]) + 1e-5);
    }
    expect_close(bench.download(rstd), inverse, acc, shape[1], "rstd");
  }
}

TEST_P(OpTable, RmsNormBackward) {
  for (const Shape& shape : kMatrices)
    for (const bool with_residual : {false, true}) {
      const int64_t width = shape[1];
      const Array x = random_array(shape, dtype, 1);
      const Array dy = random_array(shape, dtype, 2);
      const Array residual = random_array(shape, dtype, 3);
      const Array weight = random_array({width}, dtype, 4);
      const Array before = random_array({width}, acc, 5);
      Array dx(shape);
      Array dweight = before;
      Array rstd({shape[0]});
      double largest_rstd = 0.0;
      for (int64_t row = 0; row < shape[0]; ++row) {
        const int64_t at = row * width;
        double squares = 0.0;
        for (int64_t i = 0; i < width; ++i) squares += x[at + i] * x[at + i];
        const double rms = std::sqrt(squares / static_cast<double>(width) + 1e-5);
        rstd[row] = round_to(acc, 1.0 / rms);
        largest_rstd = std::max(largest_rstd, rstd[row]);
        double mean = 0.0;
        for (int64_t i = 0; i < width; ++i) {
          dweight[i] += dy[at + i] * x[at + i] / rms;
          mean += dy[at + i] * weight[i] * x[at + i] / rms / static_cast<double>(width);
        }
        for (int64_t i = 0; i < width; ++i)
          dx[at + i] = (dy[at + i] * weight[i] - x[at + i] / rms * mean) / rms +
                       (with_residual ? residual[at + i] : 0.0);
      }
      const Tensor out =
          with_residual ? bench.upload(residual, dtype) : bench.poisoned(shape, dtype);
      const Tensor weight_gradient = bench.upload(before, acc);
      ops.rms_norm_backward({.dx = out,
                             .dweight = weight_gradient,
                             .dy = bench.upload(dy, dtype),
                             .x = bench.upload(x, dtype),
                             .rstd = bench.upload(rstd, acc),
                             .weight = bench.upload(weight, dtype),
                             .dresidual = with_residual ? out : Tensor{}});
      // Two terms of size |dy * weight * rstd| <= 9 rstd may cancel.
      expect_close(bench.download(out), dx, dtype, width, "dx " + shape.to_string(),
                   9.0 * largest_rstd);
      expect_close(bench.download(weight_gradient), dweight, acc, shape[0], "dweight");
    }
}

TEST_P(OpTable, SwiGlu) {
  for (const Shape& shape : kMatrices) {
    const int64_t width = shape[1];
    const Array gate_up = random_array({shape[0], 2 * width}, dtype, 1, 3.0);
    const Array dact = random_array(shape, dtype, 2);
    const Tensor x = bench.upload(gate_up, dtype);
    const Tensor act = bench.poisoned(shape, dtype);
    ops.swiglu_forward(act, x);
    expect_close(bench.download(act), reference_swiglu(gate_up), dtype, 1, "swiglu");
    Array expected(gate_up.shape);
    for (int64_t i = 0; i < shape.numel(); ++i) {
      const int64_t at = i / width * 2 * width + i % width;
      const double gate = gate_up[at];
      const double sigmoid = 1.0 / (1.0 + std::exp(-gate));
      expected[at] = dact[i] * gate_up[at + width] * sigmoid * (1.0 + gate * (1.0 - sigmoid));
      expected[at + width] = dact[i] * reference_silu(gate);
    }
    ops.swiglu_backward(x, bench.upload(dact, dtype), x);  // in place
    expect_close(bench.download(x), expected, dtype, 1, "swiglu_backward");
  }
}

TEST_P(OpTable, AdamWFollowsTheTextbook) {
  for (const int64_t count : {1, 31, 5000}) {
    const DType master_dtype = acc;
    Array master = random_array({count}, master_dtype, 1);
    Array exp_avg = random_array({count}, master_dtype, 2, 0.1);
    Array exp_avg_sq = random_array({count}, master_dtype, 3, 0.1);
    const Array gradient = random_array({count}, master_dtype, 4);
    for (double& value : exp_avg_sq.values) value = std::abs(value);
    const AdamWOptions options{.learning_rate = 1e-2,
                               .beta1 = 0.9,
                               .beta2 = 0.95,
                               .epsilon = 1e-8,
                               .weight_decay = 0.1,
                               .gradient_scale = 0.5,
                               .step = 3};
    const AdamWTensors tensors{.parameter = bench.poisoned({count}, dtype),
                               .master = bench.upload(master, master_dtype),
                               .exp_avg = bench.upload(exp_avg, master_dtype),
                               .exp_avg_sq = bench.upload(exp_avg_sq, master_dtype),
                               .gradient = bench.upload(gradient, master_dtype)};
    ops.adamw_step(tensors, options);
    for (int64_t i = 0; i < count; ++i) {
      const double g = gradient[i] * 0.5;
      exp_avg[i] = 0.9 * exp_avg[i] + 0.1 * g;
      exp_avg_sq[i] = 0.95 * exp_avg_sq[i] + 0.05 * g * g;
      const double corrected = exp_avg[i] / (1.0 - std::pow(0.9, 3));
      const double root = std::sqrt(exp_avg_sq[i] / (1.0 - std::pow(0.95, 3)));
      master[i] -= 1e-2 * (0.1 * master[i] + corrected / (root + 1e-8));
    }
    expect_close(bench.download(tensors.master), master, master_dtype, 1, "master");
    expect_close(bench.download(tensors.exp_avg), exp_avg, master_dtype, 1, "exp_avg");
    expect_close(bench.download(tensors.exp_avg_sq), exp_avg_sq, master_dtype, 1, "exp_avg_sq");
    Array rounded = bench.download(tensors.master);
    for (double& value : rounded.values) value = round_to(dtype, value);
    expect_within(bench.download(tensors.parameter), rounded, 0.0, "parameter");

    const Tensor sum = bench.upload(Array({1}, 2.0), DType::f64);
    ops.add_sum_squares(sum, tensors.gradient);
    expect_close(bench.download(sum), Array({1}, 2.0 + dot(gradient, gradient)), DType::f64, count,
                 "add_sum_squares");
  }
}

TEST_P(OpTable, EmptyTensorsAreFine) {
  const Tensor none = bench.poisoned({0, 8}, dtype);
  const Tensor weight = bench.poisoned({8}, dtype);
  const Tensor square = bench.poisoned({8, 8}, dtype);
  const Tensor gradient = bench.upload(Array({8, 8}), acc);
  ops.add(none, none, none);
  ops.rms_norm_forward(none, bench.poisoned({0}, acc), none, weight, 1e-5);
  ops.matmul(none, none, square, {});
  ops.matmul(gradient, none, none, {.a = Transpose::yes, .accumulate = Accumulate::yes});
  expect_within(bench.download(gradient), Array({8, 8}), 0.0, "nothing was added");
}

TEST_P(OpTable, MessagesNameOpArgumentAndShape) {
  const Tensor a = bench.poisoned({3, 5}, dtype);
  const Tensor b = bench.poisoned({4, 7}, dtype);
  EXPECT_THAT(
      [&] {
        ops.matmul(bench.poisoned({3, 7}, dtype), a, b, {});
      },
      testing::ThrowsMessage<Error>(testing::AllOf(testing::HasSubstr("matmul: b [4, 7]"),
                                                   testing::HasSubstr("must be [5, 7]"))));
  EXPECT_THAT([&] { ops.add(a, a, Tensor{}); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("add: b [] f32 is missing")));
}

TEST(MakeBackend, RefusesAGpuThatIsNotThere) {
  if (num_cuda_devices() > 0) {
    EXPECT_EQ(make_backend(Device::cuda)->device(), Device::cuda);
  } else {
    EXPECT_THROW(make_backend(Device::cuda), UsageError);
  }
}

}  // namespace
}  // namespace phalanx::test
