// Conjugate pairs, and parallel layers on several ranks against the same layer on one.
#include <fmt/format.h>

#include <cmath>

#include "parallel/regions.h"
#include "parallel/thread_process_group.h"
#include "parallel/vocab_parallel.h"
#include "tests/parallel/parallel_helpers.h"

namespace phalanx::test {
namespace {

// --- <A x, y> = <x, A' y>; integer values make both sides exact ---

class Regions : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, Regions, testing::Values(1, 2, 3, 4, 8));

std::vector<double> integers(int64_t count, int seed) {
  std::vector<double> values;
  for (int64_t i = 0; i < count; ++i)
    values.push_back(static_cast<double>((i * 5 + seed * 11) % 13 - 6));
  return values;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

Tensor matrix(std::vector<double>& x, int64_t columns = 3) {
  return cpu_tensor(x.data(), {static_cast<int64_t>(x.size()) / columns, columns});
}

TEST_P(Regions, CopyAndReduceAreConjugate) {
  run_thread_ranks(GetParam(), [](ThreadRank& rank) {
    const auto group = rank.world_group();
    const std::vector<double> replicated = integers(15, 99);
    const std::vector<double> partial = integers(15, rank.rank());
    std::vector<double> sum = partial;
    CopyRegion::backward(*group, matrix(sum));
    const double left = group->all_reduce(dot(replicated, partial), ReduceOp::sum);
    check(left == dot(replicated, sum), "copy is not conjugate");
    sum = partial;
    ReduceRegion::forward(*group, matrix(sum));
    check(left == dot(sum, replicated), "reduce is not conjugate");
  });
}

TEST_P(Regions, GatherAndReduceScatterAreConjugate) {
  const int n = GetParam();
  run_thread_ranks(n, [n](ThreadRank& rank) {
    const auto group = rank.world_group();
    std::vector<double> cut = integers(15, rank.rank());
    const std::vector<double> partial = integers(15 * n, 50 + rank.rank());
    std::vector<double> whole(partial.size());
    std::vector<double> piece(cut.size());
    std::vector<double> workspace = partial;
    GatherRegion::forward(*group, matrix(whole), matrix(cut));
    GatherRegion::backward(*group, matrix(piece), matrix(workspace));
    check(group->all_reduce(dot(whole, partial), ReduceOp::sum) ==
              group->all_reduce(dot(cut, piece), ReduceOp::sum),
          "gather is not conjugate");
    workspace = partial;
    ReduceScatterRegion::forward(*group, matrix(piece), matrix(workspace));
    ReduceScatterRegion::backward(*group, matrix(whole), matrix(cut));
    check(group->all_reduce(dot(piece, cut), ReduceOp::sum) ==
              group->all_reduce(dot(partial, whole), ReduceOp::sum),
          "reduce_scatter is not conjugate");
  });
}

TEST_P(Regions, DispatchIsConjugate) {
  const int n = GetParam();
  run_thread_ranks(n, [n](ThreadRank& rank) {
    const auto group = rank.world_group();
    const auto rows = [](int from, int to) { return int64_t{(from + 2 * to) % 3}; };
    std::vector<int64_t> send(static_cast<size_t>(n));
    std::vector<int64_t> receive(static_cast<size_t>(n));
    int64_t sent = 0;
    int64_t received = 0;
    for (int peer = 0; peer < n; ++peer) {
      sent += send[static_cast<size_t>(peer)] = rows(rank.rank(), peer);
      received += receive[static_cast<size_t>(peer)] = rows(peer, rank.rank());
    }
    std::vector<double> x = integers(sent * 3, rank.rank());
    std::vector<double> y = integers(received * 3, 20 + rank.rank());
    std::vector<double> ax(y.size());
    std::vector<double> aty(x.size());
    DispatchRegion::forward(*group, matrix(ax), matrix(x), {send, receive});
    DispatchRegion::backward(*group, matrix(aty), matrix(y), {send, receive});
    check(group->all_reduce(dot(ax, y), ReduceOp::sum) ==
              group->all_reduce(dot(x, aty), ReduceOp::sum),
          "dispatch is not conjugate");
  });
}

// --- layers ---

struct Case {
  int tp;
  SequenceParallel sequence_parallel;
  DType dtype;
};

class Layers : public testing::TestWithParam<Case> {
 protected:
  /// Rows of a whole tensor that this rank has outside the region.
  static Tensor own_rows(const Tensor& whole, const ProcessGroup& tp) {
    if (GetParam().sequence_parallel == SequenceParallel::off) return whole;
    const int64_t rows = whole.shape[0] / tp.size();
    return whole.slice(tp.rank() * rows, (tp.rank() + 1) * rows);
  }
};

std::vector<Case> layer_cases() {
  std::vector<Case> cases;
  for (const DType dtype : {DType::f64, DType::f32})
    for (const int tp : {2, 4})
      for (const auto mode : {SequenceParallel::off, SequenceParallel::on})
        cases.push_back({tp, mode, dtype});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Cuts, Layers, testing::ValuesIn(layer_cases()), [](const auto& info) {
  return fmt::format("tp{}{}{}", info.param.tp, dtype_name(info.param.dtype),
                     info.param.sequence_parallel == SequenceParallel::on ? "sp" : "");
});

constexpr int64_t kRows = 24;
constexpr int64_t kIn = 16;
constexpr int64_t kOut = 8;

ColumnParallelLinear column_layer(const TensorParallelContext& context) {
  return {
      context,
      {{"first", kOut}, {"second", 2 * kOut}},
      {.in_features = kIn, .kind = ParameterKind::feed_forward, .initialiser = {.stddev = 1.0}}};
}

TEST_P(Layers, ColumnParallelEqualsOneRank) {
  const auto [size, mode, dtype] = GetParam();
  const OwnTensor x({kRows, kIn}, dtype, "x");
  const OwnTensor dy({kRows, 3 * kOut}, dtype, "dy");
  CpuBackend ops(1);
  TestMemory one;
  auto alone = make_single_process_groups();
  ParameterStore whole;
  ColumnParallelLinear reference = column_layer({whole, ops, *alone.tp, mode});
  whole.allocate(ops, dtype);
  whole.initialise(ops, 3);
  const OwnTensor y_whole({kRows, 3 * kOut}, dtype);
  const OwnTensor dx_whole({kRows, kIn}, dtype);
  ColumnParallelLinear::Saved kept;
  reference.forward(y_whole(), x(), kept, one.memory, reference.all_parts());
  reference.backward(dx_whole(), dy(), kept, one.memory, reference.all_parts());

  run_thread_ranks(size, [&, mode = mode, dtype = dtype](ThreadRank& rank) {
    const auto tp = rank.world_group();
    CpuBackend backend(1);
    TestMemory arenas;
    ParameterStore store;
    ColumnParallelLinear layer = column_layer({store, backend, *tp, mode});
    store.allocate(backend, dtype);
    store.initialise(backend, 3);
    // Local columns are this rank's cut of the first part, then of the second.
    const int64_t first = kOut / tp->size();
    const int64_t second = 2 * first;
    const auto local = [&](const Tensor& all) {
      std::vector<double> rows;
      const auto a = columns_of(all, tp->rank() * first, (tp->rank() + 1) * first);
      const auto b = columns_of(all, kOut + tp->rank() * second, kOut + (tp->rank() + 1) * second);
      for (int64_t row = 0; row < kRows; ++row) {
        rows.insert(rows.end(), a.begin() + row * first, a.begin() + (row + 1) * first);
        rows.insert(rows.end(), b.begin() + row * second, b.begin() + (row + 1) * second);
      }
      return rows;
    };
    const Tensor own_x = own_rows(x(), *tp);
    const OwnTensor y({kRows, first + second}, dtype);
    const OwnTensor own_dy({kRows, first + second}, dtype);
    const OwnTensor dx(own_x.shape, dtype);
    set_values(own_dy(), local(dy()));
    ColumnParallelLinear::Saved saved;
    layer.forward(y(), own_x, saved, arenas.memory, layer.all_parts());
    layer.backward(dx(), own_dy(), saved, arenas.memory, layer.all_parts());
    expect_near(to_doubles(y()), local(y_whole()), dtype, kIn, 9, "y");
    expect_near(to_doubles(dx()), to_doubles(own_rows(dx_whole(), *tp)), dtype, 3 * kOut, 9, "dx");
    for (int64_t i = 0; i < store.size(); ++i)
      expect_near(to_doubles(store[i].gradient), piece_of(store[i], to_doubles(whole[i].gradient)),
                  dtype, kRows, 9, "dW");
    // One part alone gives that part's columns.
    const OwnTensor y_second({kRows, second}, dtype);
    layer.forward(y_second(), own_x, saved, arenas.memory, {1, 1});
    expect_near(to_doubles(y_second()), columns_of(y(), first, first + second), dtype, kIn, 9,
                "second part");
    EXPECT_EQ(arenas.scratch.used_bytes(), 0);
  });
}

TEST_P(Layers, RowParallelEqualsOneRank) {
  const auto [size, mode, dtype] = GetParam();
  const OwnTensor x({kRows, kIn}, dtype, "x");
  const OwnTensor dy({kRows, kOut}, dtype, "dy");
  const RowParallelLinear::Init init{.in_features = kIn,
                                     .out_features = kOut,
                                     .kind = ParameterKind::attention,
                                     .initialiser = {.stddev = 1.0}};
  CpuBackend ops(1);
  TestMemory one;
  auto alone = make_single_process_groups();
  ParameterStore whole;
  RowParallelLinear reference({whole, ops, *alone.tp, mode}, "out", init);
  whole.allocate(ops, dtype);
  whole.initialise(ops, 3);
  const OwnTensor y_whole({kRows, kOut}, dtype);
  const OwnTensor dx_whole({kRows, kIn}, dtype);
  RowParallelLinear::Saved kept;
  reference.forward(y_whole(), x(), kept, one.memory);
  reference.backward(dx_whole(), dy(), kept, one.memory);

  run_thread_ranks(size, [&, mode = mode, dtype = dtype](ThreadRank& rank) {
    const auto tp = rank.world_group();
    CpuBackend backend(1);
    TestMemory arenas;
    ParameterStore store;
    RowParallelLinear layer({store, backend, *tp, mode}, "out", init);
    store.allocate(backend, dtype);
    store.initialise(backend, 3);
    const int64_t width = kIn / tp->size();
    const int64_t begin = tp->rank() * width;
    const Tensor own_dy = own_rows(dy(), *tp);
    const OwnTensor own_x({kRows, width}, dtype);
    const OwnTensor y(own_dy.shape, dtype);
    const OwnTensor dx({kRows, width}, dtype);
    set_values(own_x(), columns_of(x(), begin, begin + width));
    RowParallelLinear::Saved saved;
    layer.forward(y(), own_x(), saved, arenas.memory);
    layer.backward(dx(), own_dy, saved, arenas.memory);
    expect_near(to_doubles(y()), to_doubles(own_rows(y_whole(), *tp)), dtype, kIn, 9, "y");
    expect_near(to_doubles(dx()), columns_of(dx_whole(), begin, begin + width), dtype, kOut, 9,
                "dx");
    expect_near(to_doubles(store[0].gradient), piece_of(store[0], to_doubles(whole[0].gradient)),
                dtype, kRows, 9, "dW");
  });
}

// --- embedding and loss: padded vocabulary, ignored targets ---

constexpr int64_t kPositions = 8;
constexpr int64_t kSequences = 3;
constexpr int64_t kCopies = 2;
constexpr int64_t kHidden = 8;
constexpr int64_t kVocab = 13;  // with tp 4 the last rank holds nothing but padding
constexpr int64_t kPadded = 20;

struct EmbeddingAndLoss {
  EmbeddingAndLoss(const TensorParallelContext& context, DType dtype)
      : table(context.parameters.add({.name = "table",
                                      .global_shape = {kPadded, kHidden},
                                      .kind = ParameterKind::embedding,
                                      .placement = Placement::sharded(MeshAxis::tp, 0),
                                      .initialiser = {.stddev = 0.5}},
                                     context.tp.rank(), context.tp.size())),
        embedding(context, table),
        loss(context, table, kVocab, 5) {
    for (int64_t i = 0; i < kPositions * kSequences; ++i) {
      ids.push_back(static_cast<int32_t>((i * 5 + 2) % kVocab));
      targets.push_back(i % 4 == 1 ? -1 : static_cast<int32_t>((i * 7 + 1) % kVocab));
    }
    context.parameters.allocate(context.backend, dtype);
    context.parameters.initialise(context.backend, 3);
  }
  Tensor id_tensor() { return cpu_tensor(ids.data(), {kPositions, kSequences}); }
  Tensor target_tensor() { return cpu_tensor(targets.data(), {kPositions * kSequences}); }

  Parameter& table;
  VocabParallelEmbedding embedding;
  VocabParallelLoss loss;
  std::vector<int32_t> ids;
  std::vector<int32_t> targets;
  double sums[2] = {0.0, 0.0};
  double evaluated[2] = {0.0, 0.0};
};
constexpr VocabParallelLoss::Scales kScales{.loss_scale = 0.25, .z_loss = 0.01};

/// Forward and backward of `model` on this rank's rows of x and dy; y, dx are results.
struct Rows {
  Tensor y, dx, x, dy;
};
void run(EmbeddingAndLoss& model, const Rows& rows, Memory& memory) {
  model.embedding.forward(rows.y, model.id_tensor(), memory);
  model.embedding.backward(rows.dy, model.id_tensor(), memory);
  model.loss.forward_backward(rows.dx, rows.x, model.target_tensor(), cpu_tensor(model.sums, {2}),
                              kScales, memory);
  model.loss.forward(rows.x, model.target_tensor(), cpu_tensor(model.evaluated, {2}), memory);
}

const Shape kActivation{kPositions, kSequences, kCopies, kHidden};
const Shape kLossRows{kPositions * kSequences, kHidden};

TEST_P(Layers, EmbeddingAndLossEqualOneRank) {
  const auto [size, mode, dtype] = GetParam();
  const OwnTensor x(kLossRows, dtype, "x");
  const OwnTensor dy(kActivation, dtype, "dy");
  const OwnTensor y_whole(kActivation, dtype);
  const OwnTensor dx_whole(kLossRows, dtype);
  CpuBackend ops(1);
  TestMemory one;
  auto alone = make_single_process_groups();
  ParameterStore whole;
  EmbeddingAndLoss reference({whole, ops, *alone.tp, mode}, dtype);
  run(reference, {y_whole(), dx_whole(), x(), dy()}, one.memory);

  run_thread_ranks(size, [&, mode = mode, dtype = dtype](ThreadRank& rank) {
    const auto tp = rank.world_group();
    CpuBackend backend(1);
    TestMemory arenas;
    ParameterStore store;
    EmbeddingAndLoss model({store, backend, *tp, mode}, dtype);
    const Tensor own_x = own_rows(x(), *tp);
    const Tensor own_dy = own_rows(dy(), *tp);
    const OwnTensor y(own_dy.shape, dtype);
    const OwnTensor dx(own_x.shape, dtype);
    run(model, {y(), dx(), own_x, own_dy}, arenas.memory);
    EXPECT_EQ(to_doubles(y()), to_doubles(own_rows(y_whole(), *tp)));
    expect_near(to_doubles(dx()), to_doubles(own_rows(dx_whole(), *tp)), dtype, kPadded, 2, "dx");
    expect_near(to_doubles(store[0].gradient), piece_of(store[0], to_doubles(whole[0].gradient)),
                dtype, kPositions * kSequences, 9, "dW");
    for (int i = 0; i < 2; ++i) {
      const double scale = 16 * static_cast<double>(kPositions * kSequences);
      EXPECT_NEAR(model.sums[i], reference.sums[i], 8 * dtype_epsilon(dtype) * scale);
      EXPECT_EQ(model.sums[i], model.evaluated[i]);
    }
  });
}

TEST(VocabParallelLoss, EqualsTheDefinition) {
  const OwnTensor x(kLossRows, DType::f64, "x");
  const OwnTensor dx(kLossRows, DType::f64);
  CpuBackend ops(1);
  TestMemory arenas;
  auto alone = make_single_process_groups();
  ParameterStore store;
  EmbeddingAndLoss model({store, ops, *alone.tp}, DType::f64);
  model.loss.forward_backward(dx(), x(), model.target_tensor(), cpu_tensor(model.sums, {2}),
                              kScales, arenas.memory);
  const std::vector<double> rows = to_doubles(x());
  const std::vector<double> table = to_doubles(store[0].value);
  double loss = 0.0;
  double squares = 0.0;
  std::vector<double> gradient(rows.size(), 0.0);
  for (size_t row = 0; row < model.targets.size(); ++row) {
    if (model.targets[row] < 0) continue;
    std::vector<double> logits(kVocab, 0.0);
    double sum = 0.0;
    for (size_t v = 0; v < kVocab; ++v) {
      for (size_t h = 0; h < kHidden; ++h)
        logits[v] += rows[row * kHidden + h] * table[v * kHidden + h];
      sum += std::exp(logits[v]);
    }
    const double lse = std::log(sum);
    loss += lse - logits[static_cast<size_t>(model.targets[row])];
    squares += lse * lse;
    for (size_t v = 0; v < kVocab; ++v) {
      const double hit = static_cast<int32_t>(v) == model.targets[row] ? 1.0 : 0.0;
      const double dlogit =
          kScales.loss_scale * ((1 + 2 * kScales.z_loss * lse) * std::exp(logits[v] - lse) - hit);
      for (size_t h = 0; h < kHidden; ++h)
        gradient[row * kHidden + h] += dlogit * table[v * kHidden + h];
    }
  }
  // Exponentials are polynomials of about 1e-13 in f64, not of one rounding.
  const double tolerance = 1e-11 * static_cast<double>(model.targets.size());
  EXPECT_NEAR(model.sums[0], loss, tolerance);
  EXPECT_NEAR(model.sums[1], squares, tolerance);
  const std::vector<double> actual = to_doubles(dx());
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], gradient[i], tolerance);
}

}  // namespace
}  // namespace phalanx::test
