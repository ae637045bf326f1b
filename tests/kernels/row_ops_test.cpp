// Row-wise ops where implementations take turns between paths: whole packs of 16 bytes or single
// elements, tensors that begin anywhere, rows that fit no thread's registers, more rows than
// threads, long lists of runs. Against the CPU's f64 ops, which the op tables check.
#include <fmt/format.h>

#include "tests/kernels/op_test.h"

namespace phalanx::test {
namespace {

/// Elements before each tensor: none, or one, so that no tensor begins at a multiple of 16 bytes.
constexpr int64_t kLeads[] = {0, 1};

class RowOps : public OpTest {
 protected:
  OpBench exact{Device::cpu};
  Backend& reference = exact.backend();

  Tensor exact_upload(const Array& array) { return exact.upload(array, DType::f64); }
  Tensor exact_poisoned(const Shape& shape) { return exact.poisoned(shape, DType::f64); }
};
INSTANTIATE_TEST_SUITE_P(Ops, RowOps, testing::ValuesIn(op_cases()), op_case_name);

TEST_P(RowOps, ElementsAnywhere) {
  for (const int64_t count : {1, 8, 24, 1029})
    for (const int64_t lead : kLeads)
      for (const int64_t other_lead : kLeads) {
        const Array a = random_array({count}, dtype, 1);
        const Array b = random_array({count}, dtype, 2);
        Array expected({count});
        for (int64_t i = 0; i < count; ++i) expected[i] = a[i] + b[i];
        bench.begin_tensors_at(lead);
        const Tensor y = bench.upload(a, dtype);
        bench.begin_tensors_at(other_lead);
        ops.add(y, y, bench.upload(b, dtype));
        expect_close(bench.download(y), expected, dtype, 1, "add");
        const Tensor copied = bench.poisoned({count}, DType::f32);
        ops.copy(copied, y);
        ops.scale(y, -2.0);
        const Array sum = bench.download(copied);
        Array scaled({count});
        for (int64_t i = 0; i < count; ++i) scaled[i] = round_to(DType::f32, -2.0 * sum[i]);
        ops.copy(copied, y);
        expect_within(bench.download(copied), scaled, 0.0, "copy and scale");
        ops.fill(copied, 1.5);
        expect_within(bench.download(copied), Array({count}, 1.5), 0.0, "fill");
        ops.zero(y);
        expect_within(bench.download(y), Array({count}), 0.0, "zero");
      }
}

TEST_P(RowOps, CopiesOfAPositionAnywhere) {
  for (const int64_t width : {8, 64, 68})
    for (const int64_t lead : kLeads) {
      bench.begin_tensors_at(lead);
      const Array x = random_array({5, 2, 3, width}, dtype, 1);
      const Array dy = random_array({5, 2, width}, dtype, 2);
      const Tensor all = bench.upload(x, dtype);
      const Tensor one = bench.poisoned(dy.shape, dtype);
      const Tensor exact_all = exact_upload(x);
      const Tensor exact_one = exact_poisoned(dy.shape);
      ops.select_copy(one, all, 1);
      reference.select_copy(exact_one, exact_all, 1);
      expect_within(bench.download(one), exact.download(exact_one), 0.0, "select_copy");
      ops.accumulate_copy(all, bench.upload(dy, dtype), 2);
      reference.accumulate_copy(exact_all, exact_upload(dy), 2);
      expect_close(bench.download(all), exact.download(exact_all), dtype, 1, "accumulate_copy");
    }
}

TEST_P(RowOps, ManyRunsOfPositions) {
  std::vector<PositionRange> runs;
  int64_t end = 0;
  int64_t kept = 0;
  for (int64_t i = 0; i < 200; ++i) {
    const int64_t begin = end + i % 3;
    end = begin + i % 4;  // some are empty
    runs.push_back({begin, end});
    kept += end - begin;
  }
  for (const int64_t width : {3, 16})
    for (const int64_t lead : kLeads) {
      bench.begin_tensors_at(lead);
      const Array x = random_array({2, end + 2, width}, dtype, 1);
      const Array added = random_array({2, kept, width}, dtype, 2);
      const Array before = random_array(x.shape, acc, 3);
      const Tensor part = bench.poisoned(added.shape, dtype);
      const Tensor exact_part = exact_poisoned(added.shape);
      ops.gather_positions(part, bench.upload(x, dtype), runs);
      reference.gather_positions(exact_part, exact_upload(x), runs);
      expect_within(bench.download(part), exact.download(exact_part), 0.0, "gather_positions");
      const Tensor sums = bench.upload(before, acc);
      const Tensor exact_sums = exact_upload(before);
      ops.accumulate_positions(sums, bench.upload(added, dtype), runs);
      reference.accumulate_positions(exact_sums, exact_upload(added), runs);
      expect_close(bench.download(sums), exact.download(exact_sums), acc, 1, "accumulate");
    }
}

/// Rows of one warp and of a block, and rows beyond what the threads of a block keep in registers
/// (32,768 elements of bf16, 4,096 single ones).
const std::vector<Shape> kForwardShapes = {{5, 8},    {3, 520},   {2, 1032}, {2, 4104},
                                           {2, 4099}, {2, 33000}, {70, 24}};
/// The same (8,192 elements of bf16, 1,024 single ones), and more rows than a sum has parts.
const std::vector<Shape> kBackwardShapes = {{5, 8},    {3, 520}, {2, 1032}, {2, 1031},
                                            {5, 8208}, {70, 24}, {4200, 16}};

TEST_P(RowOps, RmsNormOfEveryWidth) {
  for (const Shape& shape : kForwardShapes)
    for (const int64_t lead : kLeads) {
      bench.begin_tensors_at(lead);
      const int64_t width = shape[1];
      const std::string what = fmt::format("{} from {}", shape.to_string(), lead);
      const Array a = random_array(shape, dtype, 1);
      const Array b = random_array(shape, dtype, 2);
      const Array weight = random_array({width}, dtype, 3);
      const Tensor sum = bench.upload(b, dtype);  // in place of b
      const Tensor y = bench.poisoned(shape, dtype);
      const Tensor rstd = bench.poisoned({shape[0]}, acc);
      ops.add_rms_norm_forward({.sum = sum,
                                .y = y,
                                .rstd = rstd,
                                .a = bench.upload(a, dtype),
                                .b = sum,
                                .weight = bench.upload(weight, dtype),
                                .epsilon = 1e-5});
      Array added(shape);
      for (int64_t i = 0; i < added.numel(); ++i) added[i] = a[i] + b[i];
      const Array x = bench.download(sum);
      expect_close(x, added, dtype, 1, "sum " + what);
      const Tensor exact_y = exact_poisoned(shape);
      const Tensor exact_rstd = exact_poisoned({shape[0]});
      reference.rms_norm_forward(exact_y, exact_rstd, exact_upload(x), exact_upload(weight), 1e-5);
      expect_close(bench.download(y), exact.download(exact_y), dtype, width, "add + norm " + what);
      expect_close(bench.download(rstd), exact.download(exact_rstd), acc, width, "rstd " + what);
      const Tensor plain = bench.poisoned(shape, dtype);
      ops.rms_norm_forward(plain, rstd, sum, bench.upload(weight, dtype), 1e-5);
      expect_within(bench.download(plain), bench.download(y), 0.0, "norm " + what);
    }
}

TEST_P(RowOps, RmsNormBackwardOfEveryWidth) {
  for (const Shape& shape : kBackwardShapes)
    for (const int64_t lead : kLeads) {
      bench.begin_tensors_at(lead);
      const int64_t width = shape[1];
      const std::string what = fmt::format("{} from {}", shape.to_string(), lead);
      const Array x = random_array(shape, dtype, 1);
      const Array dy = random_array(shape, dtype, 2);
      const Array residual = random_array(shape, dtype, 3);
      const Array weight = random_array({width}, dtype, 4);
      const Array before = random_array({width}, acc, 5);
      Array rstd({shape[0]});
      for (int64_t row = 0; row < shape[0]; ++row)
        rstd[row] = round_to(acc, 1.0 + 0.1 * static_cast<double>(row % 7));
      const auto arguments = [&](OpBench& on, DType type, DType sums) {
        const Tensor gradient = on.upload(dy, type);
        return RmsNormBackward{.dx = gradient,  // in place of dy
                               .dweight = on.upload(before, sums),
                               .dy = gradient,
                               .x = on.upload(x, type),
                               .rstd = on.upload(rstd, sums),
                               .weight = on.upload(weight, type),
                               .dresidual = on.upload(residual, type)};
      };
      const RmsNormBackward tested = arguments(bench, dtype, acc);
      const RmsNormBackward again = arguments(bench, dtype, acc);
      const RmsNormBackward expected = arguments(exact, DType::f64, DType::f64);
      ops.rms_norm_backward(tested);
      ops.rms_norm_backward(again);
      reference.rms_norm_backward(expected);
      expect_close(bench.download(tested.dx), exact.download(expected.dx), dtype, width,
                   "dx " + what, 9.0);
      const Array dweight = bench.download(tested.dweight);
      expect_close(dweight, exact.download(expected.dweight), acc, shape[0], "dweight " + what);
      expect_within(bench.download(again.dweight), dweight, 0.0, "the same bits again, " + what);
    }
}

TEST_P(RowOps, SwiGluAnywhere) {
  for (const int64_t width : {8, 40, 44})
    for (const int64_t lead : kLeads) {
      bench.begin_tensors_at(lead);
      const Array gate_up = random_array({7, 2 * width}, dtype, 1, 3.0);
      const Array dact = random_array({7, width}, dtype, 2);
      const Tensor x = bench.upload(gate_up, dtype);
      const Tensor act = bench.poisoned(dact.shape, dtype);
      const Tensor exact_x = exact_upload(gate_up);
      const Tensor exact_act = exact_poisoned(dact.shape);
      ops.swiglu_forward(act, x);
      reference.swiglu_forward(exact_act, exact_x);
      expect_close(bench.download(act), exact.download(exact_act), dtype, 1, "swiglu_forward");
      ops.swiglu_backward(x, bench.upload(dact, dtype), x);
      reference.swiglu_backward(exact_x, exact_upload(dact), exact_x);
      expect_close(bench.download(x), exact.download(exact_x), dtype, 1, "swiglu_backward");
    }
}

TEST_P(RowOps, SumsOfSquaresOfWideRows) {
  for (const int64_t width : {16, 4096, 5000})
    for (const int64_t column : {0, 3, 16}) {
      const Array x = random_array({3, width + 32}, dtype, 1);
      const Tensor sums = bench.poisoned({3}, acc);
      const Tensor exact_sums = exact_poisoned({3});
      ops.row_sum_squares(sums, bench.upload(x, dtype), column, width);
      reference.row_sum_squares(exact_sums, exact_upload(x), column, width);
      expect_close(bench.download(sums), exact.download(exact_sums), acc, width, "sums");
    }
}

/// Where heads lie: elements before each tensor, columns before and behind them in a row.
struct HeadPlacement {
  int64_t lead, before, behind;
};
constexpr HeadPlacement kHeadPlacements[] = {{0, 16, 16}, {1, 16, 16}, {0, 3, 29}, {0, 16, 17}};

/// Forward and backward of heads on one bench.
struct HeadRun {
  static constexpr int64_t kPositions = 3, kSequences = 2, kCopies = 2, kGroups = 3;
  HeadLayout layout;
  HeadNorm norm;
  int64_t dim;
  HeadPlacement placement;

  bool queries() const { return layout == HeadLayout::queries; }
  int64_t rows() const { return kPositions * kSequences * kCopies; }
  int64_t heads() const { return kGroups * (queries() ? 2 : 1); }
  Shape shape() const {
    return queries() ? Shape{kSequences, kGroups, kPositions, kCopies * 2, dim}
                     : Shape{kCopies, kSequences, kGroups, kPositions, dim};
  }
  std::string name() const {
    return fmt::format("{} {} D={} from {}, columns {} and {}", queries() ? "queries" : "keys",
                       enum_name(norm), dim, placement.lead, placement.before, placement.behind);
  }

  struct Results {
    Array y, dx, dweight, dweight_again;
  };
  /// Inputs are rounded to `rounding`, the dtype under test, and held in `dtype`.
  Results run(OpBench& bench, DType dtype, DType rounding) const {
    const DType acc = accumulator_dtype(dtype);
    const bool full = norm == HeadNorm::full_width;
    const int64_t width = heads() * dim;
    const Shape matrix{rows(), placement.before + width + placement.behind};
    const Array weights = random_array({full ? width : dim}, rounding, 2);
    const Array angles = random_array({kPositions + 1, dim}, DType::f32, 5);
    SplitHeads options{.layout = layout,
                       .copies = kCopies,
                       .total_copies = kCopies,
                       .column = placement.before,
                       .norm = norm,
                       .norm_width = full ? width : 0,
                       .first_position = 1};
    if (dim % 2 == 0) options.rope_table = bench.upload(angles, DType::f32);
    if (norm != HeadNorm::none) options.weight = bench.upload(weights, dtype);
    const Tensor x = bench.upload(random_array(matrix, rounding, 1), dtype);
    options.row_sums = bench.poisoned({rows()}, acc);
    bench.backend().row_sum_squares(options.row_sums, x, placement.before, width);
    const Tensor y = bench.poisoned(shape(), dtype);
    bench.backend().split_heads_forward(y, x, options);

    const Tensor dy = bench.upload(random_array(shape(), rounding, 3), dtype);
    const Tensor dots = bench.poisoned({rows()}, acc);
    if (full) bench.backend().split_heads_row_dots(dots, dy, x, options);
    const Tensor dx = bench.upload(Array(matrix), dtype);
    std::vector<Tensor> dweights;
    for (int turn = 0; turn < 2; ++turn) {
      dweights.push_back(bench.upload(Array(weights.shape, 1.0), acc));
      bench.backend().split_heads_backward(
          {.dx = dx, .dweight = dweights.back(), .dy = dy, .x = x, .row_dots = dots}, options);
    }
    return {bench.download(y), bench.download(dx), bench.download(dweights[0]),
            bench.download(dweights[1])};
  }
};

TEST_P(RowOps, HeadsOfEverySize) {
  for (const int64_t dim : {5, 16, 64, 96, 256, 1024})
    for (const HeadLayout layout : {HeadLayout::queries, HeadLayout::keys})
      for (const HeadNorm norm : {HeadNorm::none, HeadNorm::per_head, HeadNorm::full_width})
        for (const HeadPlacement& placement : kHeadPlacements) {
          // Away from alignment one head dim for each number of elements that a lane may hold.
          if (&placement != &kHeadPlacements[0] && dim != 96 && dim != 1024) continue;
          const HeadRun heads{layout, norm, dim, placement};
          const std::string what = heads.name();
          bench.begin_tensors_at(placement.lead);
          const auto expected = heads.run(exact, DType::f64, dtype);
          const auto actual = heads.run(bench, dtype, dtype);
          expect_close(actual.y, expected.y, dtype, dim, "y of " + what);
          expect_close(actual.dx, expected.dx, dtype, dim, "dx of " + what, 9.0);
          const int64_t terms = heads.rows() * heads.heads() + dim;
          expect_close(actual.dweight, expected.dweight, acc, terms, "dweight of " + what);
          expect_within(actual.dweight_again, actual.dweight, 0.0, "the same bits of " + what);
        }
}

/// So many heads and rows that the parts of a sum are as many as threads allow, and uneven.
TEST_P(RowOps, MoreHeadsThanThreads) {
  const int64_t rows = 300, groups = 64, per_group = 4, dim = 6;
  const Array x = random_array({rows, groups * per_group * dim}, dtype, 1);
  const Array dy = random_array({1, groups, rows, per_group, dim}, dtype, 2);
  const Array weight = random_array({dim}, dtype, 3);
  const auto run = [&](OpBench& on, DType type) {
    const Tensor dx = on.poisoned(x.shape, type);
    const Tensor dweight = on.upload(Array({dim}), accumulator_dtype(type));
    const SplitHeads options{.norm = HeadNorm::per_head, .weight = on.upload(weight, type)};
    on.backend().split_heads_backward(
        {.dx = dx, .dweight = dweight, .dy = on.upload(dy, type), .x = on.upload(x, type)},
        options);
    return std::pair(on.download(dx), on.download(dweight));
  };
  const auto expected = run(exact, DType::f64);
  const auto actual = run(bench, dtype);
  expect_close(actual.first, expected.first, dtype, dim, "dx", 9.0);
  expect_close(actual.second, expected.second, acc, rows * groups * per_group, "dweight");
}

}  // namespace
}  // namespace phalanx::test
