// Shapes that decide how a GPU walks through memory: slices that begin at any element, widths and
// lengths that leave a rest, long rows, many tokens of one id, keys of several digits. Against
// naive f64 loops, and twice for the same bits.
#include <algorithm>
#include <limits>
#include <numeric>

#include "tests/kernels/reference.h"

namespace phalanx::test {
namespace {

class Access : public OpTest {
 protected:
  /// The parts of a cache line where tensors begin.
  static constexpr int64_t kStarts[] = {0, 1, 3};

  template <class T>
  std::vector<T> integers(const Tensor& tensor) {
    std::vector<T> host(static_cast<size_t>(tensor.numel()));
    ops.download(host.data(), tensor);
    return host;
  }
};
INSTANTIATE_TEST_SUITE_P(Ops, Access, testing::ValuesIn(op_cases()), op_case_name);

TEST_P(Access, ProductsOfSlices) {
  const int64_t m = 9, n = 16, k = 24;
  const Array a = random_array({m, k}, dtype, 1), b = random_array({n, k}, dtype, 2);
  const Array before = random_array({m, n}, acc, 3);
  Array expected = reference_matmul(a, b, kTimesTransposed);
  for (int64_t i = 0; i < m * n; ++i) expected[i] += before[i];
  for (const int64_t a_start : kStarts)
    for (const int64_t b_start : kStarts)
      for (const int64_t c_start : kStarts) {
        const Tensor c = bench.upload_from(c_start, before, acc);
        ops.matmul(c, bench.upload_from(a_start, a, dtype), bench.upload_from(b_start, b, dtype),
                   {.b = Transpose::yes, .accumulate = Accumulate::yes});
        expect_close(bench.download(c), expected, acc, k, "matmul", 9.0);
      }
}

/// A third of the tokens has one id, a third few ids, the rest is spread over all or of other
/// ranks.
Array crowded_ids(int64_t tokens, int64_t vocab_begin, int64_t vocab) {
  Array ids = random_integers({tokens, 1}, vocab_begin - vocab / 4, vocab_begin + vocab, 1);
  const Array few = random_integers({tokens}, -5, 40, 2);
  for (int64_t token = 0; token < tokens; token += 3) {
    ids[token] = static_cast<double>(vocab_begin + vocab - 3);
    ids[token + 1] = static_cast<double>(vocab_begin) + few[token];
  }
  ids[2] = static_cast<double>(std::numeric_limits<int32_t>::min());
  ids[5] = static_cast<double>(std::numeric_limits<int32_t>::max());
  ids[8] = static_cast<double>(vocab_begin + vocab - 1);
  ids[11] = static_cast<double>(vocab_begin + vocab);
  return ids;
}

TEST_P(Access, EmbeddingOfManyTokensOfOneIdAndOfOtherRanks) {
  const int64_t tokens = 2100, copies = 2, vocab_begin = 100000;
  // More rows than two digits of 8 bits tell apart; widths with and without a rest.
  for (const auto& [vocab, width] :
       std::vector<std::pair<int64_t, int64_t>>{{70000, 1}, {70000, 8}, {200, 5}, {200, 264}}) {
    const Array ids = crowded_ids(tokens, vocab_begin, vocab);
    const Array dy = random_array({tokens, 1, copies, width}, dtype, 3);
    const Array table = random_array({vocab, width}, dtype, 4);
    Array sums(table.shape), copied(dy.shape);
    for (int64_t i = 0; i < dy.numel(); ++i) {
      const auto local = static_cast<int64_t>(ids[i / width / copies]) - vocab_begin;
      if (local < 0 || local >= vocab) continue;
      sums[local * width + i % width] += dy[i];
      copied[i] = table[local * width + i % width];
    }
    const Tensor id_tensor = bench.upload(ids, DType::i32);
    for (const int64_t start : kStarts) {
      const Tensor y = bench.poisoned_from(start, dy.shape, dtype);
      ops.embedding_forward(y, bench.upload_from(start, table, dtype), id_tensor, vocab_begin);
      expect_within(bench.download(y), copied, 0.0, "embedding_forward");
      std::vector<Array> results;
      for (int time = 0; time < 2; ++time) {
        const Tensor dtable = bench.upload_from(start, Array(table.shape), acc);
        ops.embedding_backward(dtable, bench.upload_from(start, dy, dtype), id_tensor, vocab_begin);
        results.push_back(bench.download(dtable));
      }
      expect_close(results[0], sums, acc, tokens * copies, "embedding_backward");
      EXPECT_EQ(results[0].values, results[1].values) << "bits of embedding_backward";
    }
  }
}

TEST_P(Access, CrossEntropyOfLongRows) {
  struct Case {
    int64_t width, vocab, start;
  };
  for (const auto& [width, vocab, start] :
       std::vector<Case>{{40000, 39991, 0}, {20000, 20000, 1}, {10007, 10007, 0}, {648, 3, 0}}) {
    const int64_t rows = 4;
    const Array logits = random_array({rows, width}, dtype, 1, 4.0);
    Array targets = random_integers({rows}, 0, vocab, 2);
    targets[1] = static_cast<double>(vocab - 1);
    targets[2] = -1;
    const CrossEntropyOptions options{.targets = bench.upload(targets, DType::i32),
                                      .vocab_size = vocab,
                                      .loss_scale = 0.5,
                                      .z_loss = 1e-3};
    const CrossEntropyReference expected(logits, targets, vocab, options);
    const Tensor in_place = bench.upload_from(start, logits, dtype);
    const Tensor stats = bench.poisoned({rows, 3}, acc);
    ops.cross_entropy_forward(stats, in_place, options);
    const Tensor sums = bench.upload(Array({2}), DType::f64);
    ops.cross_entropy_loss(sums, stats, options);
    ops.cross_entropy_backward(in_place, stats, options);
    Array expected_sums({2});
    expected_sums[0] = expected.loss;
    expected_sums[1] = expected.lse_squares;
    expect_close(bench.download(sums), expected_sums, acc, width, "loss");
    expect_close(bench.download(in_place), expected.dlogits, dtype, width, "dlogits", 0.5);
  }
}

TEST_P(Access, CrossEntropyOfUnusualRows) {
  const double infinity = std::numeric_limits<double>::infinity();
  const int64_t width = 72;
  Array logits = random_array({5, width}, dtype, 1);
  logits[3] = std::nan("");                                               // row 0
  for (int64_t i = 0; i < 70; ++i) logits[width + i] = -infinity;         // row 1: all but two
  for (int64_t i = 0; i < width; ++i) logits[2 * width + i] = -infinity;  // row 2: all
  logits[3 * width + 70] = infinity;
  for (int64_t i = 0; i < width; ++i) logits[4 * width + i] = -3e4;
  CrossEntropyOptions options{.targets = bench.upload(Array({5}), DType::i32), .vocab_size = width};
  const Tensor stats = bench.poisoned({5, 3}, acc);
  ops.cross_entropy_forward(stats, bench.upload(logits, dtype), options);
  const Array values = bench.download(stats);
  EXPECT_TRUE(std::isnan(values[1]));
  const double two[] = {logits[width + 70], logits[width + 71]};
  EXPECT_EQ(values[3], std::max(two[0], two[1]));
  EXPECT_NEAR(values[4], 1.0 + std::exp(-std::abs(two[0] - two[1])), tolerance(acc, 2, 2.0));
  EXPECT_EQ(values[6], -infinity);
  EXPECT_TRUE(std::isnan(values[7]));
  EXPECT_TRUE(std::isnan(values[10]));
  EXPECT_NEAR(values[13], width, tolerance(acc, width, width));
  // A rank whose columns are all padding.
  options.vocab_begin = width;
  ops.cross_entropy_forward(stats, bench.upload(logits, dtype), options);
  Array nothing({5, 3});
  for (int64_t row = 0; row < 5; ++row) nothing[row * 3] = -infinity;
  expect_within(bench.download(stats), nothing, 0.0, "stats of padding");
}

TEST_P(Access, AdamWOfSlicesWithARest) {
  const AdamWOptions options{
      .learning_rate = 1e-2, .weight_decay = 0.1, .gradient_scale = 0.5, .step = 3};
  for (const int64_t count : {1, 7, 8, 4099})
    for (const int64_t start : kStarts)
      for (const bool own_parameter : {false, true}) {
        std::vector<Array> arrays;
        for (uint64_t seed = 1; seed <= 4; ++seed)
          arrays.push_back(random_array({count}, acc, seed));
        for (double& value : arrays[2].values) value = std::abs(value);
        std::vector<Tensor> at;
        for (const Array& array : arrays) at.push_back(bench.upload_from(start, array, acc));
        // Where the parameter starts need not be where the master does.
        const AdamWTensors tensors{
            .parameter = own_parameter ? bench.poisoned_from(start / 2, {count}, dtype) : Tensor{},
            .master = at[0],
            .exp_avg = at[1],
            .exp_avg_sq = at[2],
            .gradient = at[3]};
        ops.adamw_step(tensors, options);
        Array expected = arrays[0];
        for (int64_t i = 0; i < count; ++i) {
          const double g = arrays[3][i] * 0.5;
          const double m = 0.9 * arrays[1][i] + 0.1 * g;
          const double v = 0.95 * arrays[2][i] + 0.05 * g * g;
          const double root = std::sqrt(v / (1.0 - std::pow(0.95, 3)));
          expected[i] -= 1e-2 * (0.1 * expected[i] + m / (1.0 - std::pow(0.9, 3)) / (root + 1e-8));
        }
        const Array master = bench.download(at[0]);
        expect_close(master, expected, acc, 1, "master");
        if (!own_parameter) continue;
        Array rounded = master;
        for (double& value : rounded.values) value = round_to(dtype, value);
        expect_within(bench.download(tensors.parameter), rounded, 0.0, "parameter");
      }
}

TEST_P(Access, SumOfSquaresOfSlices) {
  for (const int64_t count : {0, 1, 5, 50001})
    for (const int64_t start : kStarts) {
      const Array x = random_array({count}, dtype, 1);
      const Tensor sum = bench.upload(Array({1}, 2.0), DType::f64);
      ops.add_sum_squares(sum, bench.upload_from(start, x, dtype));
      expect_close(bench.download(sum), Array({1}, 2.0 + dot(x, x)), DType::f64, count, "sum");
    }
}

TEST_P(Access, SortByManyExperts) {
  struct Case {
    int64_t rows, topk, experts, used;
  };
  for (const auto& [rows, topk, experts, used] : std::vector<Case>{
           {1500, 3, 70000, 70000}, {2049, 1, 257, 257}, {4000, 2, 8, 1}, {100, 2, 1, 1}}) {
    const Array chosen = random_integers({rows, topk}, experts - used, experts, 5);
    const int64_t count = chosen.numel();
    std::vector<int64_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t left, int64_t right) { return chosen[left] < chosen[right]; });
    std::vector<int32_t> expected_places(order.size());
    std::vector<int64_t> expected_counts(static_cast<size_t>(experts), 0);
    for (int64_t place = 0; place < count; ++place) {
      const int64_t choice = order[static_cast<size_t>(place)];
      expected_places[static_cast<size_t>(choice)] = static_cast<int32_t>(place);
      ++expected_counts[static_cast<size_t>(chosen[choice])];
    }
    const Tensor places = bench.poisoned({rows, topk}, DType::i32);
    const Tensor counts = bench.poisoned({experts}, DType::i64);
    ops.sort_by_expert(places, counts, bench.upload(chosen, DType::i32));
    EXPECT_EQ(integers<int32_t>(places), expected_places);
    EXPECT_EQ(integers<int64_t>(counts), expected_counts);
  }
  const Tensor counts = bench.poisoned({4}, DType::i64);
  ops.sort_by_expert(bench.poisoned({0, 2}, DType::i32), counts,
                     bench.poisoned({0, 2}, DType::i32));
  EXPECT_EQ(integers<int64_t>(counts), std::vector<int64_t>(4, 0));
}

TEST_P(Access, RowsOfExpertsInSlices) {
  const int64_t rows = 5, topk = 3;
  const Tensor places = bench.poisoned({rows, topk}, DType::i32);
  std::vector<int32_t> place(static_cast<size_t>(rows * topk));
  for (int64_t i = 0; i < rows * topk; ++i)
    place[static_cast<size_t>(i)] = static_cast<int32_t>(i * 4 % (rows * topk));  // a permutation
  ops.upload(places, place.data());
  for (const int64_t width : {3, 16, 520})
    for (const int64_t start : kStarts) {
      const Array x = random_array({rows, width}, dtype, 1);
      const Array z = random_array({rows * topk, width}, dtype, 2);
      const Array added = random_array({rows, width}, acc, 3);
      const Array factors = random_array({rows}, acc, 4);
      Array moved(z.shape), combined = added, scaled(x.shape), dots({rows});
      for (int64_t i = 0; i < z.numel(); ++i) {
        const int64_t row = i / width / topk, column = i % width;
        const int64_t target = place[static_cast<size_t>(i / width)] * width + column;
        moved[target] = x[row * width + column];
        combined[row * width + column] += z[target];
      }
      for (int64_t i = 0; i < x.numel(); ++i) {
        scaled[i] = factors[i / width] * x[i];
        dots[i / width] += x[i] * z[i];
      }
      const Tensor x_tensor = bench.upload_from(start, x, dtype);
      const Tensor z_tensor = bench.upload_from(start, z, dtype);
      const Tensor y = bench.poisoned_from(start, z.shape, dtype);
      const Tensor back = bench.poisoned_from(start, x.shape, dtype);
      const Tensor sums = bench.poisoned_from(start, {rows}, acc);
      ops.permute_rows(y, x_tensor, places);
      expect_within(bench.download(y), moved, 0.0, "permute_rows");
      ops.combine_rows(back, z_tensor, places, bench.upload_from(start, added, acc));
      expect_close(bench.download(back), combined, dtype, topk, "combine_rows");
      ops.row_dots(sums, x_tensor, z_tensor.slice(0, rows));
      expect_close(bench.download(sums), dots, acc, width, "row_dots", 9.0);
      ops.scale_rows(x_tensor, x_tensor, bench.upload_from(start, factors, acc));
      expect_close(bench.download(x_tensor), scaled, dtype, 1, "scale_rows");
    }
}

}  // namespace
}  // namespace phalanx::test
