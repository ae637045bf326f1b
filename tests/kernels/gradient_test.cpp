// Gradients of every op with a backward, in f64, against directional finite differences of its own
// forward.
#include "tests/kernels/op_test.h"

namespace phalanx::test {
namespace {

/// Five-point rule at step h = 2e-4: truncation h^4 / 30 times a fifth derivative of up to 1e6
/// (norms of short heads), rounding eps / h times values of up to 1e2; each below 1e-10.
constexpr double kDifferenceError = 1e-9;

class Gradient : public testing::Test {
 protected:
  void TearDown() override { bench.expect_guards_intact(); }

  Tensor up(const Array& array) { return bench.upload(array, DType::f64); }
  Tensor out(const Shape& shape) { return bench.poisoned(shape, DType::f64); }
  static Array draw(const Shape& shape, uint64_t seed) {
    return random_array(shape, DType::f64, seed);
  }
  /// `gradient` of `loss` at x, along one random direction.
  static void expect_gradient(const std::function<double(const Array&)>& loss, const Array& x,
                              const Array& gradient, const std::string& what) {
    const Array direction = draw(x.shape, 99);
    const double expected = directional_difference(loss, x, direction);
    EXPECT_NEAR(dot(gradient, direction), expected,
                kDifferenceError * std::max(1.0, std::abs(expected)))
        << what;
    EXPECT_GT(std::abs(expected), 1e-3) << what << ": a gradient of 0 tests nothing";
  }

  OpBench bench{test_device()};
  Backend& ops = bench.backend();
};

TEST_F(Gradient, RmsNormWithFusedAddAndResidual) {
  const Shape shape{35, 9};
  const Array a = draw(shape, 1), b = draw(shape, 2), weight = draw({9}, 3);
  const Array dy = draw(shape, 4), dsum = draw(shape, 5);
  const Tensor sum = out(shape), y = out(shape), rstd = out({35});
  // loss = <dy, norm(a + b)> + <dsum, a + b>: the sum goes on as the residual stream.
  const auto loss = [&](const Array& first, const Array& w) {
    ops.add_rms_norm_forward({.sum = sum,
                              .y = y,
                              .rstd = rstd,
                              .a = up(first),
                              .b = up(b),
                              .weight = up(w),
                              .epsilon = 1e-5});
    return dot(bench.download(y), dy) + dot(bench.download(sum), dsum);
  };
  loss(a, weight);
  const Tensor dx = out(shape), dweight = up(Array({9}));
  ops.rms_norm_backward({.dx = dx,
                         .dweight = dweight,
                         .dy = up(dy),
                         .x = sum,
                         .rstd = rstd,
                         .weight = up(weight),
                         .dresidual = up(dsum)});
  const Array da = bench.download(dx), dw = bench.download(dweight);
  expect_gradient([&](const Array& moved) { return loss(moved, weight); }, a, da, "a and b");
  expect_gradient([&](const Array& moved) { return loss(a, moved); }, weight, dw, "weight");
}

TEST_F(Gradient, SwiGlu) {
  const Array x = draw({6, 14}, 1), dy = draw({6, 7}, 2);
  const Tensor act = out({6, 7}), dx = out({6, 14});
  ops.swiglu_backward(dx, up(dy), up(x));
  expect_gradient(
      [&](const Array& moved) {
        ops.swiglu_forward(act, up(moved));
        return dot(bench.download(act), dy);
      },
      x, bench.download(dx), "gate_up");
}

TEST_F(Gradient, Matmul) {
  const Array a = draw({4, 5}, 1), b = draw({3, 5}, 2), dc = draw({4, 3}, 3);
  const Tensor c = out({4, 3}), da = out({4, 5}), db = up(Array({3, 5}));
  ops.matmul(da, up(dc), up(b), {});
  ops.matmul(db, up(dc), up(a), {.a = Transpose::yes, .accumulate = Accumulate::yes});
  const auto loss = [&](const Array& left, const Array& right) {
    ops.matmul(c, up(left), up(right), {.b = Transpose::yes});
    return dot(bench.download(c), dc);
  };
  expect_gradient([&](const Array& moved) { return loss(moved, b); }, a, bench.download(da), "a");
  expect_gradient([&](const Array& moved) { return loss(a, moved); }, b, bench.download(db), "b");
}

TEST_F(Gradient, Embedding) {
  const Array table = draw({6, 5}, 1), dy = draw({4, 2, 3, 5}, 2);
  const Tensor ids = bench.upload(random_integers({4, 2}, 8, 18, 3), DType::i32);
  const Tensor y = out(dy.shape), dtable = up(Array(table.shape));
  ops.embedding_backward(dtable, up(dy), ids, 10);
  expect_gradient(
      [&](const Array& moved) {
        ops.embedding_forward(y, up(moved), ids, 10);
        return dot(bench.download(y), dy);
      },
      table, bench.download(dtable), "table");
}

TEST_F(Gradient, SelectCopy) {
  const Array x = draw({4, 2, 3, 5}, 1), dy = draw({4, 2, 5}, 2);
  const Tensor y = out(dy.shape), dx = up(Array(x.shape));
  ops.accumulate_copy(dx, up(dy), 1);
  expect_gradient(
      [&](const Array& moved) {
        ops.select_copy(y, up(moved), 1);
        return dot(bench.download(y), dy);
      },
      x, bench.download(dx), "x");
}

TEST_F(Gradient, CrossEntropyWithZLossOverTwoShards) {
  const int64_t rows = 5, half = 6, vocab = 11;  // the last column is padding
  Array targets = random_integers({rows}, 0, vocab, 1);
  targets[2] = -1;
  const Tensor target_ids = bench.upload(targets, DType::i32);
  const double scale = 0.5, z_loss = 0.05;
  const auto options = [&](int64_t shard) {
    return CrossEntropyOptions{.targets = target_ids,
                               .vocab_begin = shard * half,
                               .vocab_size = vocab,
                               .loss_scale = scale,
                               .z_loss = z_loss};
  };
  const auto shard_of = [&](const Array& logits, int64_t shard) {
    Array part({rows, half});
    for (int64_t i = 0; i < part.numel(); ++i)
      part[i] = logits[i / half * 2 * half + shard * half + i % half];
    return part;
  };
  const auto global_stats = [&](const Array& logits) {
    Array merged({rows, 3});
    std::vector<Array> stats;
    for (int64_t shard = 0; shard < 2; ++shard) {
      const Tensor one = out({rows, 3});
      ops.cross_entropy_forward(one, up(shard_of(logits, shard)), options(shard));
      stats.push_back(bench.download(one));
    }
    for (int64_t r = 0; r < rows; ++r) {
      const double largest = std::max(stats[0][r * 3], stats[1][r * 3]);
      merged[r * 3] = largest;
      for (const Array& one : stats) {
        merged[r * 3 + 1] += one[r * 3 + 1] * std::exp(one[r * 3] - largest);
        merged[r * 3 + 2] += one[r * 3 + 2];
      }
    }
    return merged;
  };
  const Array logits = draw({rows, 2 * half}, 2);
  const Tensor stats = up(global_stats(logits));
  Array gradient(logits.shape);
  for (int64_t shard = 0; shard < 2; ++shard) {
    const Tensor part = up(shard_of(logits, shard));
    ops.cross_entropy_backward(part, stats, options(shard));
    const Array values = bench.download(part);
    for (int64_t i = 0; i < values.numel(); ++i)
      gradient[i / half * 2 * half + shard * half + i % half] = values[i];
  }
  expect_gradient(
      [&](const Array& moved) {
        const Tensor sums = up(Array({2}));
        ops.cross_entropy_loss(sums, up(global_stats(moved)), options(0));
        const Array values = bench.download(sums);
        return scale * (values[0] + z_loss * values[1]);
      },
      logits, gradient, "logits");
}

struct HeadCase {
  HeadLayout layout;
  HeadNorm norm;
  CopyPosition copy_position;
};

class HeadGradient : public Gradient, public testing::WithParamInterface<HeadCase> {
 protected:
  static constexpr int64_t kPositions = 4, kSequences = 2, kCopies = 2, kGroups = 3, kDim = 6;

  SplitHeads options() {
    SplitHeads split{.layout = GetParam().layout,
                     .copies = kCopies,
                     .first_copy = 1,
                     .total_copies = 3,
                     .column = 2,
                     .norm = GetParam().norm,
                     .rope_table = bench.poisoned({32, kDim}, DType::f32),
                     .first_position = 3,
                     .copy_position = GetParam().copy_position};
    ops.rope_table(split.rope_table, 100.0);
    return split;
  }
  bool queries() const { return GetParam().layout == HeadLayout::queries; }
  int64_t heads() const { return kGroups * (queries() ? 2 : 1); }
  Shape shape() const {
    return queries() ? Shape{kSequences, kGroups, kPositions, kCopies * 2, kDim}
                     : Shape{kCopies, kSequences, kGroups, kPositions, kDim};
  }
};

std::vector<HeadCase> head_cases() {
  std::vector<HeadCase> cases;
  for (const HeadLayout layout : {HeadLayout::queries, HeadLayout::keys})
    for (const HeadNorm norm : {HeadNorm::none, HeadNorm::per_head, HeadNorm::full_width})
      for (const CopyPosition position : {CopyPosition::shared, CopyPosition::flattened})
        cases.push_back({layout, norm, position});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Ops, HeadGradient, testing::ValuesIn(head_cases()),
                         [](const testing::TestParamInfo<HeadCase>& info) {
                           std::string name(enum_name(info.param.norm));
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name + "_" + std::string(enum_name(info.param.copy_position)) +
                                  (info.param.layout == HeadLayout::keys ? "_keys" : "_queries");
                         });

TEST_P(HeadGradient, SplitHeads) {
  const int64_t rows = kPositions * kSequences * kCopies;
  const int64_t width = heads() * kDim;
  const bool full = GetParam().norm == HeadNorm::full_width;
  const bool normed = GetParam().norm != HeadNorm::none;
  SplitHeads split = options();
  const Array x = draw({rows, width + 2}, 1), dy = draw(shape(), 2);
  const Array weight = draw({full ? width : kDim}, 3);
  split.row_sums = out({rows});
  split.norm_width = full ? width : 0;
  const Tensor y = out(shape());
  const auto loss = [&](const Array& rows_in, const Array& w) {
    const Tensor in = up(rows_in);
    split.weight = up(w);
    ops.row_sum_squares(split.row_sums, in, split.column, width);
    ops.split_heads_forward(y, in, split);
    return dot(bench.download(y), dy);
  };
  loss(x, weight);
  const Tensor dx = up(Array(x.shape)), dweight = up(Array(weight.shape)), dots = out({rows});
  const Tensor dy_tensor = up(dy), x_tensor = up(x);
  if (full) ops.split_heads_row_dots(dots, dy_tensor, x_tensor, split);
  ops.split_heads_backward(
      {.dx = dx, .dweight = dweight, .dy = dy_tensor, .x = x_tensor, .row_dots = dots}, split);
  expect_gradient([&](const Array& moved) { return loss(moved, weight); }, x, bench.download(dx),
                  "x");
  if (normed)
    expect_gradient([&](const Array& moved) { return loss(x, moved); }, weight,
                    bench.download(dweight), "weight");
}

}  // namespace
}  // namespace phalanx::test
