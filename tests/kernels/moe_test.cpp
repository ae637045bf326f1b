// Ops of mixture-of-experts layers against naive f64 loops, their gradients against finite
// differences, and moved rows against their transpose.
#include <gmock/gmock.h>

#include <numeric>

#include "tests/kernels/reference.h"

namespace phalanx::test {
namespace {

class MoeOps : public OpTest {
 protected:
  RouterOutputs router_outputs(int64_t rows, int64_t experts, int64_t topk) {
    return {.probabilities = bench.poisoned({rows, experts}, acc),
            .logsumexp = bench.poisoned({rows}, acc),
            .experts = bench.poisoned({rows, topk}, DType::i32),
            .weights = bench.poisoned({rows, topk}, acc)};
  }
  template <class T>
  std::vector<T> integers(const Tensor& tensor) {
    std::vector<T> host(static_cast<size_t>(tensor.numel()));
    ops.download(host.data(), tensor);
    return host;
  }
  Tensor upload_integers(const std::vector<int32_t>& values, const Shape& shape) {
    const Tensor tensor = bench.poisoned(shape, DType::i32);
    ops.upload(tensor, values.data());
    return tensor;
  }
  Tensor upload_counts(const std::vector<int64_t>& values) {
    const Tensor tensor = bench.poisoned({static_cast<int64_t>(values.size())}, DType::i64);
    ops.upload(tensor, values.data());
    return tensor;
  }
};
INSTANTIATE_TEST_SUITE_P(Ops, MoeOps, testing::ValuesIn(op_cases()), op_case_name);

/// Numbers of row `row`'s experts, most probable first, lower number first on a tie.
std::vector<int32_t> sorted_experts(const Array& probabilities, int64_t row) {
  const int64_t experts = probabilities.shape.back();
  std::vector<int32_t> order(static_cast<size_t>(experts));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return probabilities[row * experts + a] > probabilities[row * experts + b];
  });
  return order;
}

TEST_P(MoeOps, RouterTakesTheMostProbableExpertsWithTheirPlainProbabilities) {
  for (const auto& [rows, experts, topk] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {5, 3, 3}, {257, 64, 8}, {33, 7, 2}, {6, 100, 33}}) {
    const Array logits = random_array({rows, experts}, acc, 1, 3.0);
    const RouterOutputs out = router_outputs(rows, experts, topk);
    ops.router_forward(out, bench.upload(logits, acc));
    Array p({rows, experts});
    Array lse({rows});
    for (int64_t row = 0; row < rows; ++row) {
      double sum = 0.0;
      for (int64_t e = 0; e < experts; ++e) sum += std::exp(logits[row * experts + e]);
      lse[row] = std::log(sum);
      for (int64_t e = 0; e < experts; ++e)
        p[row * experts + e] = std::exp(logits[row * experts + e]) / sum;
    }
    expect_close(bench.download(out.probabilities), p, acc, experts, "probabilities");
    expect_close(bench.download(out.logsumexp), lse, acc, experts, "logsumexp");
    const Array computed = bench.download(out.probabilities);
    const Array weights = bench.download(out.weights);
    const auto chosen = integers<int32_t>(out.experts);
    for (int64_t row = 0; row < rows; ++row) {
      const std::vector<int32_t> expected = sorted_experts(computed, row);
      for (int64_t j = 0; j < topk; ++j) {
        const int32_t expert = chosen[static_cast<size_t>(row * topk + j)];
        ASSERT_EQ(expert, expected[static_cast<size_t>(j)]) << "row " << row;
        // As they are: renormalised weights would sum to 1.
        ASSERT_EQ(weights[row * topk + j], computed[row * experts + expert]);
      }
    }
  }
}

TEST_P(MoeOps, RouterBreaksTiesTowardsTheLowerExpertAndWorksInPlace) {
  const Array logits({2, 5}, 0.25);
  RouterOutputs out = router_outputs(2, 5, 3);
  out.probabilities = bench.upload(logits, acc);
  ops.router_forward(out, out.probabilities);
  EXPECT_THAT(integers<int32_t>(out.experts), testing::ElementsAre(0, 1, 2, 0, 1, 2));
  expect_close(bench.download(out.weights), Array({2, 3}, 0.2), acc, 5, "weights");
}

TEST_P(MoeOps, RouterKeepsNanWithoutLeavingTheExperts) {
  Array logits({1, 4}, 1.0);
  logits[2] = std::nan("");
  const RouterOutputs out = router_outputs(1, 4, 2);
  ops.router_forward(out, bench.upload(logits, acc));
  for (const int32_t expert : integers<int32_t>(out.experts)) {
    EXPECT_GE(expert, 0);
    EXPECT_LT(expert, 4);
  }
  EXPECT_TRUE(std::isnan(bench.download(out.weights)[0]));
}

TEST_P(MoeOps, RouterLossSumsBothTerms) {
  for (const int64_t rows : {1, 70, 3000}) {
    const int64_t experts = 6;
    const Array logits = random_array({rows, experts}, acc, 3);
    const RouterOutputs out = router_outputs(rows, experts, 2);
    ops.router_forward(out, bench.upload(logits, acc));
    const std::vector<int64_t> counts{3, 0, 5, 100, 7, 2};
    const Tensor sums = bench.upload(Array({2}, 0.5), DType::f64);
    ops.router_loss(sums, out, {.counts = upload_counts(counts), .balance = 0.125, .z = 0.25});
    const Array p = bench.download(out.probabilities);
    const Array lse = bench.download(out.logsumexp);
    Array expected({2}, 0.5);
    for (int64_t i = 0; i < p.numel(); ++i)
      expected[0] += 0.125 * static_cast<double>(counts[static_cast<size_t>(i % experts)]) * p[i];
    for (int64_t row = 0; row < rows; ++row) expected[1] += 0.25 * lse[row] * lse[row];
    expect_close(bench.download(sums), expected, DType::f64, rows * experts, "sums");
  }
}

TEST_P(MoeOps, RouterBackwardEqualsFiniteDifferences) {
  const int64_t rows = 5, experts = 6, topk = 2;
  const Array logits = random_array({rows, experts}, acc, 11);
  const Array dweights = random_array({rows, topk}, acc, 12);
  const double balance = 0.05, z = 0.1;
  const std::vector<int64_t> counts{3, 0, 5, 1, 7, 2};
  const RouterOutputs out = router_outputs(rows, experts, topk);
  ops.router_forward(out, bench.upload(logits, acc));
  const auto chosen = integers<int32_t>(out.experts);
  const RouterLossFactors factors{.counts = upload_counts(counts), .balance = balance, .z = z};
  const Tensor dlogits = bench.poisoned({rows, experts}, acc);
  ops.router_backward(dlogits, bench.upload(dweights, acc), out, factors);
  const auto loss = [&](const Array& moved) {
    double sum = 0.0;
    for (int64_t row = 0; row < rows; ++row) {
      double total = 0.0;
      for (int64_t e = 0; e < experts; ++e) total += std::exp(moved[row * experts + e]);
      const auto p = [&](int64_t e) { return std::exp(moved[row * experts + e]) / total; };
      for (int64_t j = 0; j < topk; ++j)
        sum += dweights[row * topk + j] * p(chosen[static_cast<size_t>(row * topk + j)]);
      for (int64_t e = 0; e < experts; ++e)
        sum += balance * static_cast<double>(counts[static_cast<size_t>(e)]) * p(e);
      sum += z * std::log(total) * std::log(total);
    }
    return sum;
  };
  const Array gradient = bench.download(dlogits);
  for (uint64_t seed = 20; seed < 24; ++seed) {
    const Array direction = random_array(logits.shape, acc, seed);
    const double expected = directional_difference(loss, logits, direction);
    // Rounding of the gradient in acc, and the error of the five-point rule (gradient_test.cpp).
    EXPECT_NEAR(dot(gradient, direction), expected,
                1e-9 + tolerance(acc, rows * experts, std::sqrt(dot(direction, direction))));
    EXPECT_GT(std::abs(expected), 1e-3);
  }
}

TEST_P(MoeOps, SortByExpertIsStable) {
  const std::vector<int32_t> experts{3, 1, 1, 3, 0, 3, 1, 0};
  const Tensor places = bench.poisoned({4, 2}, DType::i32);
  const Tensor counts = bench.poisoned({5}, DType::i64);
  ops.sort_by_expert(places, counts, upload_integers(experts, {4, 2}));
  EXPECT_THAT(integers<int64_t>(counts), testing::ElementsAre(2, 3, 0, 3, 0));
  EXPECT_THAT(integers<int32_t>(places), testing::ElementsAre(5, 2, 3, 6, 0, 7, 4, 1));
}

TEST_P(MoeOps, PermuteAndCombineMoveRowsThereAndBack) {
  for (const int64_t width : {1, 7, 300}) {
    const std::vector<int32_t> place{2, 5, 0, 1, 4, 3};
    const Tensor places = upload_integers(place, {3, 2});
    const Array x = random_array({3, width}, dtype, 1);
    const Array z = random_array({6, width}, dtype, 2);
    const Array added = random_array({3, width}, acc, 3);
    const Tensor y = bench.poisoned({6, width}, dtype);
    const Tensor back = bench.poisoned({3, width}, dtype);
    ops.permute_rows(y, bench.upload(x, dtype), places);
    Array moved({6, width});
    Array combined = added;
    for (int64_t i = 0; i < 6; ++i)
      for (int64_t c = 0; c < width; ++c) {
        const int64_t target = place[static_cast<size_t>(i)];
        moved[target * width + c] = x[i / 2 * width + c];
        combined[i / 2 * width + c] += z[target * width + c];
      }
    expect_within(bench.download(y), moved, 0.0, "permute_rows");
    ops.combine_rows(back, bench.upload(z, dtype), places, bench.upload(added, acc));
    expect_close(bench.download(back), combined, dtype, 3, "combine_rows with added");
    ops.combine_rows(back, bench.upload(z, dtype), places);
    for (int64_t i = 0; i < combined.numel(); ++i) combined[i] -= added[i];
    expect_close(bench.download(back), combined, dtype, 3, "combine_rows", 3.0);
  }
}

TEST_P(MoeOps, ScaleRowsAndRowDots) {
  for (const Shape& shape : std::vector<Shape>{{1, 1}, {0, 4}, {5, 7}, {130, 257}}) {
    const Array a = random_array(shape, dtype, 1);
    const Array b = random_array(shape, dtype, 2);
    const Array factors = random_array({shape[0]}, acc, 3);
    Array scaled(shape);
    Array dots({shape[0]});
    for (int64_t i = 0; i < a.numel(); ++i) {
      scaled[i] = factors[i / shape[1]] * a[i];
      dots[i / shape[1]] += a[i] * b[i];
    }
    const Tensor y = bench.upload(a, dtype);
    ops.scale_rows(y, y, bench.upload(factors, acc));
    expect_close(bench.download(y), scaled, dtype, 1, "scale_rows");
    const Tensor sums = bench.poisoned({shape[0]}, acc);
    ops.row_dots(sums, bench.upload(a, dtype), bench.upload(b, dtype));
    expect_close(bench.download(sums), dots, acc, shape[1], "row_dots", 9.0);
  }
}

/// Rows [begin, end) of a matrix.
Array rows_of(const Array& all, int64_t begin, int64_t end) {
  const int64_t width = all.shape.back();
  Array part({end - begin, width});
  std::copy_n(all.values.begin() + begin * width, part.numel(), part.values.begin());
  return part;
}

TEST_P(MoeOps, GroupedMatmulEqualsOneProductPerGroup) {
  const int64_t n = 10, k = 6;
  for (const std::vector<int64_t>& rows :
       std::vector<std::vector<int64_t>>{{3, 0, 17, 1}, {0, 0, 5}, {4}, {0, 0}, {130, 2}}) {
    const auto groups = static_cast<int64_t>(rows.size());
    const int64_t total = std::accumulate(rows.begin(), rows.end(), int64_t{0});
    const Array x = random_array({total, k}, dtype, 1);
    const Array dy = random_array({total, n}, dtype, 2);
    const Array w = random_array({groups * n, k}, dtype, 3);
    const Array start = random_array({groups * n, k}, acc, 4);
    const Tensor y = bench.poisoned({total, n}, dtype);
    const Tensor dx = bench.poisoned({total, k}, acc);
    const Tensor weights = bench.upload(w, dtype).view({groups, n, k});
    const Tensor dw = bench.upload(start, acc).view({groups, n, k});
    const Tensor tx = bench.upload(x, dtype), tdy = bench.upload(dy, dtype);
    const MatmulOptions forward{.b = Transpose::yes}, backward{};
    const MatmulOptions gradient{.a = Transpose::yes, .accumulate = Accumulate::yes};
    ops.grouped_matmul(y, tx, weights, {rows, forward});
    ops.grouped_matmul(dx, tdy, weights, {rows, backward});
    ops.grouped_matmul(dw, tdy, tx, {rows, gradient});
    int64_t begin = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t end = begin + rows[static_cast<size_t>(g)];
      const Array xg = rows_of(x, begin, end), dyg = rows_of(dy, begin, end);
      const Array wg = rows_of(w, g * n, (g + 1) * n);
      expect_close(rows_of(bench.download(y), begin, end), reference_matmul(xg, wg, forward), dtype,
                   k, "y", 3.0);
      expect_close(rows_of(bench.download(dx), begin, end), reference_matmul(dyg, wg, backward),
                   acc, n, "dx", 9.0);
      Array expected = rows_of(start, g * n, (g + 1) * n);
      const Array added = reference_matmul(dyg, xg, gradient);
      for (int64_t i = 0; i < expected.numel(); ++i) expected[i] += added[i];
      expect_close(rows_of(bench.download(dw.as_matrix()), g * n, (g + 1) * n), expected, acc,
                   rows[static_cast<size_t>(g)], "dw", 9.0);
      begin = end;
    }
  }
}

TEST_P(MoeOps, WrongShapesAreNamed) {
  const Tensor x = bench.poisoned({3, 4}, dtype);
  const Tensor places = upload_integers({0, 1, 2, 3, 4, 5}, {3, 2});
  EXPECT_THROW(ops.permute_rows(bench.poisoned({5, 4}, dtype), x, places), Error);
  EXPECT_THROW(ops.combine_rows(x, bench.poisoned({6, 3}, dtype), places), Error);
  const std::vector<int64_t> rows{1, 1};
  EXPECT_THROW(ops.grouped_matmul(x, x, bench.poisoned({2, 4, 4}, dtype), {rows, {}}), Error);
  EXPECT_THROW(ops.router_forward(router_outputs(3, 4, 5), bench.poisoned({3, 4}, acc)), Error);
}

}  // namespace
}  // namespace phalanx::test
