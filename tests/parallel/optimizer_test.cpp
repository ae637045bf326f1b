// Buckets, overlapped reduction and ZeRO-1 AdamW on several ranks against one rank.
#include <fmt/format.h>

#include <gmock/gmock.h>

#include <cstring>

#include "parallel/distributed_optimizer.h"
#include "parallel/thread_process_group.h"
#include "tests/parallel/parallel_helpers.h"

namespace phalanx::test {
namespace {

/// Matrices and vectors of odd sizes, of every kind of weight decay. The third is cut over tp by
/// columns; the norms are replicated.
void register_parameters(ParameterStore& store, int tp_rank = 0, int tp_size = 1,
                         Placement norm = Placement::replicated()) {
  store.add({.name = "embedding",
             .global_shape = {10, 6},
             .kind = ParameterKind::embedding,
             .placement = Placement::sharded(MeshAxis::tp, 0),
             .initialiser = {.stddev = 0.5}},
            tp_rank, tp_size);
  store.add({.name = "norm.0", .global_shape = {7}, .placement = norm});
  store.add({.name = "out",
             .global_shape = {5, 8},
             .kind = ParameterKind::attention,
             .placement = Placement::sharded(MeshAxis::tp, 1),
             .initialiser = {.stddev = 0.5}},
            tp_rank, tp_size);
  store.add(
      {.name = "norm.1", .global_shape = {3}, .placement = norm, .initialiser = {.stddev = 0.5}});
}

/// Gradients whose sum depends on the order of the terms.
void add_gradients(ParameterStore& store, int rank, int step) {
  for (int64_t i = 0; i < store.size(); ++i) {
    dispatch_float(store[i].gradient.dtype, [&]<class T>() {
      T* gradient = store[i].gradient.as<T>();
      for (int64_t j = 0; j < store[i].numel(); ++j)
        gradient[j] = static_cast<T>(
            gradient[j] +
            static_cast<T>(1.0 / static_cast<double>(3 + (i + j * 7 + rank * 31 + step * 13) % 29) -
                           0.1));
    });
  }
}

TEST(Buckets, CoverTheStoreInRowsAndAreEven) {
  ParameterStore store;
  register_parameters(store);
  for (const int64_t bucket_size : {1, 8, 61, 70, 1000}) {
    for (const int num_ranks : {1, 2, 3, 4, 8, 50}) {
      const auto buckets = make_buckets(store, {.bucket_size = bucket_size, .dp_cp = num_ranks});
      int64_t at = 0;
      for (const Bucket& bucket : buckets) {
        ASSERT_EQ(bucket.begin, at);
        ASSERT_EQ(bucket.counts.size(), static_cast<size_t>(num_ranks));
        if (buckets.size() > 1) {
          EXPECT_GE(bucket.end - bucket.begin, bucket_size);
        }
        const double share =
            static_cast<double>(bucket.end - bucket.begin) / static_cast<double>(num_ranks);
        for (const int64_t count : bucket.counts) {
          ASSERT_GE(count, 0);
          // Both ends move to the nearest row of at most 8 elements.
          EXPECT_LE(std::abs(static_cast<double>(count) - share), 9.0);
          at += count;
          bool boundary = at == bucket.end;
          for (int64_t i = bucket.first_parameter; i < bucket.last_parameter; ++i) {
            const int64_t inside = at - store[i].flat_offset;
            boundary |= 0 <= inside && inside <= store[i].numel() &&
                        inside % store[i].matrix_shape()[1] == 0;
          }
          EXPECT_TRUE(boundary) << at;
        }
        EXPECT_EQ(at, bucket.end);
      }
      EXPECT_EQ(at, store.numel());
    }
  }
}

TEST(GradientBuffer, ReducesCompleteBucketsWhileTheBackwardRuns) {
  run_thread_ranks(3, [](ThreadRank& rank) {
    ProcessGroups groups = rank.process_groups(DeviceMesh(ParallelConfig{}, 3));
    const auto& dp = groups.dp_cp;
    CpuBackend backend(1);
    ParameterStore store;
    register_parameters(store);
    store.allocate(backend, DType::f32);
    GradientBuffer gradients(store, backend, groups, {.bucket_size = 1, .overlap = true});
    for (int step = 0; step < 2; ++step) {
      const int64_t before = dp->traffic(Collective::reduce_scatter).calls;
      const auto started = [&] { return dp->traffic(Collective::reduce_scatter).calls - before; };
      gradients.zero();
      add_gradients(store, rank.rank(), step);
      gradients.final_from(4);
      EXPECT_EQ(started(), 0);
      gradients.final_from(2);
      EXPECT_EQ(started(), 2);
      gradients.finish_sync();
      EXPECT_EQ(started(), 4);
    }
  });
}

struct Case {
  int num_ranks;
  DType dtype;
  bool overlap;
  int64_t bucket_size;
};
class Optimizer : public testing::TestWithParam<Case> {};

std::vector<Case> optimizer_cases() {
  std::vector<Case> cases;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64})
    for (const int num_ranks : {1, 2, 3, 4})
      for (const int64_t bucket_size : {1, 65, 1000})
        cases.push_back({num_ranks, dtype, bucket_size != 65, bucket_size});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Ranks, Optimizer, testing::ValuesIn(optimizer_cases()),
                         [](const auto& info) {
                           return fmt::format("{}ranks{}bucket{}", info.param.num_ranks,
                                              dtype_name(info.param.dtype), info.param.bucket_size);
                         });

constexpr int kSteps = 3;
constexpr double kLearningRate = 0.01;

/// What one rank would do with the sum of all ranks' gradients in rank order, parameter by
/// parameter.
std::vector<double> weights_of_one_rank(int num_ranks, DType dtype, const OptimizerConfig& config) {
  const DType master_dtype = accumulator_dtype(dtype);
  CpuBackend backend(1);
  ParameterStore store;
  register_parameters(store);
  store.allocate(backend, dtype);
  const OwnTensor master({store.numel()}, master_dtype);
  const OwnTensor exp_avg({store.numel()}, master_dtype);
  const OwnTensor exp_avg_sq({store.numel()}, master_dtype);
  const auto part = [](const OwnTensor& all, const Parameter& p) {
    return all().slice(p.flat_offset, p.flat_offset + p.numel());
  };
  for (int64_t i = 0; i < store.size(); ++i)
    initialise_rows(backend, store[i], 0, part(master, store[i]).view(store[i].matrix_shape()), 3);
  for (int step = 0; step < kSteps; ++step) {
    backend.zero(store.flat_gradient());
    for (int rank = 0; rank < num_ranks; ++rank) {
      ParameterStore one;
      register_parameters(one);
      one.allocate(backend, dtype);
      add_gradients(one, rank, step);
      backend.add(store.flat_gradient(), store.flat_gradient(), one.flat_gradient());
    }
    for (int64_t i = 0; i < store.size(); ++i) {
      const Parameter& p = store[i];
      const bool decays = p.spec.kind == ParameterKind::attention;
      backend.adamw_step({.parameter = {},
                          .master = part(master, p),
                          .exp_avg = part(exp_avg, p),
                          .exp_avg_sq = part(exp_avg_sq, p),
                          .gradient = p.gradient.view({p.numel()})},
                         {.learning_rate = kLearningRate,
                          .beta1 = config.adam_beta1,
                          .beta2 = config.adam_beta2,
                          .epsilon = config.adam_eps,
                          .weight_decay = decays ? config.weight_decay : 0.0,
                          .gradient_scale = 0.5,
                          .step = step + 1});
    }
  }
  backend.copy(store.flat_value(), master());
  return to_doubles(store.flat_value());
}

TEST_P(Optimizer, EqualsAdamWOnOneRankBitForBit) {
  const auto [num_ranks, dtype, overlap, bucket_size] = GetParam();
  OptimizerConfig config;
  config.decay_norm_and_bias = false;
  const std::vector<double> expected = weights_of_one_rank(num_ranks, dtype, config);
  run_thread_ranks(num_ranks, [&, n = num_ranks, dtype = dtype, overlap = overlap,
                               bucket_size = bucket_size](ThreadRank& rank) {
    ProcessGroups groups = rank.process_groups(DeviceMesh(ParallelConfig{}, n));
    CpuBackend backend(1);
    ParameterStore store;
    register_parameters(store);
    store.allocate(backend, dtype);
    GradientBuffer gradients(store, backend, groups,
                             {.bucket_size = bucket_size, .overlap = overlap});
    DistributedOptimizer optimizer(store, gradients, backend, groups, config);
    optimizer.initialise(3);
    for (int step = 0; step < kSteps; ++step) {
      gradients.zero();
      add_gradients(store, rank.rank(), step);
      gradients.final_from(1);
      gradients.finish_sync();
      optimizer.step(kLearningRate, 0.5);
      gradients.gather_weights();
    }
    EXPECT_EQ(to_doubles(store.flat_value()), expected);
    int64_t rows = 0;
    for (const OptimizerShard& shard : optimizer.shards()) {
      EXPECT_EQ(shard.master.shape[0], shard.row_end - shard.row_begin);
      rows += shard.row_end - shard.row_begin;
    }
    EXPECT_EQ(groups.world->all_reduce(rows, ReduceOp::sum), 10 + 7 + 5 + 3);
    const int64_t element_bytes = dtype == DType::f64 ? 16 : (dtype == DType::bf16 ? 12 : 8);
    EXPECT_EQ(groups.world->all_reduce(optimizer.state_bytes(), ReduceOp::sum),
              store.numel() * element_bytes);
  });
}

TEST(DistributedOptimizer, InitialWeightsDoNotDependOnTheMesh) {
  CpuBackend backend(1);
  ParameterStore whole;
  register_parameters(whole);
  whole.allocate(backend, DType::f32);
  whole.initialise(backend, 11);
  run_thread_ranks(4, [&](ThreadRank& rank) {
    const DeviceMesh mesh({.tensor_model_parallel_size = 2}, 4);
    ProcessGroups groups = rank.process_groups(mesh);
    CpuBackend own(1);
    ParameterStore store;
    register_parameters(store, groups.tp->rank(), groups.tp->size());
    store.allocate(own, DType::f32);
    GradientBuffer gradients(store, own, groups, {.bucket_size = 40});
    DistributedOptimizer(store, gradients, own, groups, {}).initialise(11);
    for (int64_t i = 0; i < store.size(); ++i)
      EXPECT_EQ(to_doubles(store[i].value), piece_of(store[i], to_doubles(whole[i].value)));
  });
}

TEST(DistributedOptimizer, GradientNormCountsEachElementOnce) {
  run_thread_ranks(4, [](ThreadRank& rank) {
    const DeviceMesh mesh({.tensor_model_parallel_size = 2}, 4);
    ProcessGroups groups = rank.process_groups(mesh);
    CpuBackend backend(1);
    ParameterStore store;
    // Norms whose gradients are partial over tp too, as under sequence parallel.
    Placement norm;
    norm.partial_gradient.add(MeshAxis::tp);
    register_parameters(store, groups.tp->rank(), groups.tp->size(), norm);
    store.allocate(backend, DType::f32);
    GradientBuffer gradients(store, backend, groups, {.bucket_size = 40});
    DistributedOptimizer optimizer(store, gradients, backend, groups, {});
    gradients.zero();
    for (int64_t i = 0; i < store.numel(); ++i) store.flat_gradient().as<float>()[i] = 1.0F;
    gradients.finish_sync();
    // Cut matrices sum over 2 dp ranks, norms over all 4.
    EXPECT_EQ(optimizer.gradient_norm(), std::sqrt((60 + 40) * 4.0 + (7 + 3) * 16.0));
  });
}

TEST(ClipFactor, LeavesSmallNormsAlone) {
  EXPECT_EQ(clip_factor(0.5, 1.0), 1.0);
  EXPECT_EQ(clip_factor(4.0, 1.0), 0.25);
  EXPECT_EQ(clip_factor(4.0, 0.0), 1.0);
}

TEST(ParameterStore, FusesNeighboursAndNamesMistakes) {
  CpuBackend backend(1);
  ParameterStore store;
  const Parameter& q = store.add({.name = "q", .global_shape = {4, 3}});
  store.add({.name = "k", .global_shape = {2, 3}});
  store.add({.name = "norm", .global_shape = {3}});
  EXPECT_THROW(store.add({.name = "q", .global_shape = {4, 3}}), Error);
  EXPECT_THAT(
      [&] {
        store.add({.name = "cut",
                   .global_shape = {5, 3},
                   .placement = Placement::sharded(MeshAxis::tp, 0)},
                  0, 2);
      },
      testing::ThrowsMessage<UsageError>(testing::HasSubstr("not divisible by its 2")));
  store.allocate(backend, DType::bf16);
  EXPECT_TRUE(store.fused_value(q, 2).shape == (Shape{6, 3}));
  EXPECT_EQ(store.fused_value(q, 2).data, q.value.data);
  EXPECT_EQ(store.fused_gradient(q, 2).dtype, DType::f32);
  EXPECT_THROW(store.fused_value(q, 3), Error);
  EXPECT_THROW(store.add({.name = "late", .global_shape = {1}}), Error);
}

}  // namespace
}  // namespace phalanx::test
