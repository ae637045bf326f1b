// The op table, part two: rotary tables, heads in every layout, norm and copy position, and the
// cross-entropy over vocabulary shards, against naive f64 loops.
#include "tests/kernels/reference.h"

namespace phalanx::test {
namespace {

class HeadTable : public OpTest {};
INSTANTIATE_TEST_SUITE_P(Ops, HeadTable, testing::ValuesIn(op_cases()), op_case_name);

TEST_P(HeadTable, RopeTable) {
  for (const auto& [positions, dim] : std::vector<std::pair<int64_t, int64_t>>{{1, 2}, {37, 6}}) {
    const Tensor table = bench.poisoned({positions, dim}, DType::f32);
    ops.rope_table(table, 10000.0);
    Array expected({positions, dim});
    for (int64_t p = 0; p < positions; ++p)
      for (int64_t i = 0; i < dim / 2; ++i) {
        const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(dim);
        const double angle = static_cast<double>(p) * std::pow(10000.0, exponent);
        expected[p * dim + i] = std::cos(angle);
        expected[p * dim + dim / 2 + i] = std::sin(angle);
      }
    expect_close(bench.download(table), expected, DType::f32, 1, "rope_table", 1.0);
  }
}

TEST_P(HeadTable, RowSumSquares) {
  const Array x = random_array({17, 29}, dtype, 1);
  const Tensor sums = bench.poisoned({17}, acc);
  ops.row_sum_squares(sums, bench.upload(x, dtype), 5, 13);
  Array expected({17});
  for (int64_t row = 0; row < 17; ++row)
    for (int64_t i = 5; i < 18; ++i) expected[row] += x[row * 29 + i] * x[row * 29 + i];
  expect_close(bench.download(sums), expected, acc, 13, "row_sum_squares");
}

/// Every layout, norm and copy position; positions from ids or from a first position.
struct HeadSetting {
  HeadLayout layout;
  HeadNorm norm;
  CopyPosition copy_position;
  bool rotate;
  bool ids;
};

std::vector<HeadSetting> head_settings() {
  std::vector<HeadSetting> settings;
  for (const HeadLayout layout : {HeadLayout::queries, HeadLayout::keys})
    for (const HeadNorm norm : {HeadNorm::none, HeadNorm::per_head, HeadNorm::full_width})
      for (const CopyPosition position : {CopyPosition::shared, CopyPosition::flattened})
        for (const bool ids : {false, true})
          settings.push_back({layout, norm, position, true, ids});
  settings.push_back({HeadLayout::keys, HeadNorm::none, CopyPosition::shared, false, false});
  settings.push_back({HeadLayout::keys, HeadNorm::per_head, CopyPosition::shared, false, false});
  return settings;
}

TEST_P(HeadTable, SplitHeadsForward) {
  const int64_t positions = 5, sequences = 2, copies = 2, groups = 3, dim = 6;
  for (const HeadSetting& setting : head_settings()) {
    const bool queries = setting.layout == HeadLayout::queries;
    const int64_t per_group = queries ? 2 : 1;
    const int64_t width = groups * per_group * dim;
    HeadsReference reference;
    reference.shape = queries ? Shape{sequences, groups, positions, copies * per_group, dim}
                              : Shape{copies, sequences, groups, positions, dim};
    SplitHeads& options = reference.options;
    options = {.layout = setting.layout,
               .copies = copies,
               .first_copy = 1,
               .total_copies = 3,
               .column = 4,
               .norm = setting.norm,
               .norm_width = setting.norm == HeadNorm::full_width ? 2 * width : 0,
               .first_position = 2,
               .copy_position = setting.copy_position};
    const int64_t rows = positions * sequences * copies;
    const Array x = random_array({rows, width + 7}, dtype, 1);
    if (setting.norm != HeadNorm::none) {
      const bool full = setting.norm == HeadNorm::full_width;
      reference.weight = random_array({full ? width : dim}, dtype, 2);
      options.weight = bench.upload(reference.weight, dtype);
      reference.row_sums = random_array({rows}, acc, 3, 5.0);
      for (double& sum : reference.row_sums.values) sum = 10.0 + std::abs(sum);
      options.row_sums = bench.upload(reference.row_sums, acc);
    }
    if (setting.rotate) {
      options.rope_table = bench.poisoned({64, dim}, DType::f32);
      ops.rope_table(options.rope_table, 100.0);
      reference.table = bench.download(options.rope_table);
    }
    if (setting.ids) {
      reference.position_ids = random_integers({positions, sequences}, 0, 20, 4);
      options.position_ids = bench.upload(reference.position_ids, DType::i32);
    }
    const Tensor y = bench.poisoned(reference.shape, dtype);
    ops.split_heads_forward(y, bench.upload(x, dtype), options);
    expect_close(bench.download(y), reference.forward(x), dtype, dim, "split_heads_forward");
  }
}

TEST_P(HeadTable, SplitHeadsBackwardLeavesOtherColumns) {
  const Shape heads{1, 1, 3, 2, 4};
  const Array before = random_array({3, 12}, dtype, 1);
  const Array dy = random_array(heads, dtype, 2);
  const Tensor dx = bench.upload(before, dtype);
  ops.split_heads_backward({.dx = dx, .dy = bench.upload(dy, dtype)},
                           {.layout = HeadLayout::queries, .column = 2});
  Array expected = before;
  for (int64_t row = 0; row < 3; ++row)
    for (int64_t i = 0; i < 8; ++i) expected[row * 12 + 2 + i] = dy[row * 8 + i];
  expect_within(bench.download(dx), expected, 0.0, "dx");
}

struct LossSize {
  int64_t rows, columns, vocab;
};

/// Merges the stats of shards as tensor parallelism does.
Array merge_stats(const std::vector<Array>& shards) {
  Array merged(shards[0].shape);
  for (int64_t r = 0; r < merged.shape[0]; ++r) {
    double largest = shards[0][r * 3];
    for (const Array& shard : shards) largest = std::max(largest, shard[r * 3]);
    merged[r * 3] = largest;
    for (const Array& shard : shards) {
      const double sum = shard[r * 3 + 1];
      if (sum > 0.0) merged[r * 3 + 1] += sum * std::exp(shard[r * 3] - largest);
      merged[r * 3 + 2] += shard[r * 3 + 2];
    }
  }
  return merged;
}

TEST_P(HeadTable, CrossEntropyMerge) {
  for (const int64_t rows : {1, 7, 300})
    for (const int64_t ranks : {1, 2, 5}) {
      std::vector<Array> shards;
      Array parts({ranks, rows, 3});
      for (int64_t rank = 0; rank < ranks; ++rank) {
        Array shard = random_array({rows, 3}, acc, static_cast<int>(10 * rank + rows), 20.0);
        for (int64_t row = 0; row < rows; ++row) {
          shard[row * 3 + 1] = 1.0 + std::abs(shard[row * 3 + 1]);
          // A rank that has padding only: the maximum of nothing.
          if (rank == 1 && row % 2 == 0) {
            shard[row * 3] = -std::numeric_limits<double>::infinity();
            shard[row * 3 + 1] = shard[row * 3 + 2] = 0.0;
          }
        }
        for (int64_t i = 0; i < shard.numel(); ++i) parts[rank * 3 * rows + i] = shard[i];
        shards.push_back(shard);
      }
      const Tensor merged = bench.poisoned({rows, 3}, acc);
      ops.cross_entropy_merge(merged, bench.upload(parts, acc));
      expect_close(bench.download(merged), merge_stats(shards), acc, 1, "merged");
    }
}

TEST_P(HeadTable, CrossEntropyOverShards) {
  for (const auto& [rows, columns, vocab] :
       std::vector<LossSize>{{1, 2, 1}, {7, 10, 9}, {5, 130, 61}, {33, 1000, 1000}})
    for (const double z_loss : {0.0, 1e-2}) {
      const Array logits = random_array({rows, columns}, dtype, 1, 4.0);
      const Array targets = random_integers({rows}, -1, vocab, 2);
      CrossEntropyOptions options{.targets = bench.upload(targets, DType::i32),
                                  .vocab_size = vocab,
                                  .loss_scale = 0.25,
                                  .z_loss = z_loss};
      const CrossEntropyReference expected(logits, targets, vocab, options);
      const int64_t half = columns / 2;
      std::vector<Tensor> parts;
      std::vector<Array> stats;
      for (int64_t shard = 0; shard < 2; ++shard) {
        Array part({rows, half});
        for (int64_t i = 0; i < part.numel(); ++i)
          part[i] = logits[i / half * columns + shard * half + i % half];
        parts.push_back(bench.upload(part, dtype));
        const Tensor out = bench.poisoned({rows, 3}, acc);
        options.vocab_begin = shard * half;
        ops.cross_entropy_forward(out, parts.back(), options);
        stats.push_back(bench.download(out));
      }
      const Tensor merged = bench.upload(merge_stats(stats), acc);
      const Tensor sums = bench.upload(Array({2}, 1.0), DType::f64);
      ops.cross_entropy_loss(sums, merged, options);
      Array expected_sums({2}, 1.0);
      expected_sums[0] += expected.loss;
      expected_sums[1] += expected.lse_squares;
      expect_close(bench.download(sums), expected_sums, acc, columns, "loss");
      for (int64_t shard = 0; shard < 2; ++shard) {
        options.vocab_begin = shard * half;
        ops.cross_entropy_backward(parts[static_cast<size_t>(shard)], merged, options);
        Array part({rows, half});
        for (int64_t i = 0; i < part.numel(); ++i)
          part[i] = expected.dlogits[i / half * columns + shard * half + i % half];
        expect_close(bench.download(parts[static_cast<size_t>(shard)]), part, dtype, columns,
                     "dlogits", 0.25);
      }
    }
}

}  // namespace
}  // namespace phalanx::test
