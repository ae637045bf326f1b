// Bugs that other trainers had where parallelisms meet (issues of Megatron-LM, torchtitan,
// DeepSpeed and others), one test each.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <mutex>

#include "core/layout_validate.h"
#include "core/train/weights_file.h"
#include "data/batch_loader.h"
#include "parallel/context_parallel.h"
#include "parallel/thread_process_group.h"
#include "tests/mesh/faulty_process_group.h"
#include "tests/mesh/mesh_case.h"
#include "tests/mesh/mesh_system.h"

namespace phalanx::test {
namespace {

using Batch = std::vector<MicroBatch>;

/// Sums of at most `kTerms` products in another order, through some layers: 64 eps sqrt(terms).
constexpr double kTerms = 1 << 17;
double tolerance(double value) {
  return 64 * dtype_epsilon(DType::f64) * std::sqrt(kTerms) * std::abs(value);
}

Batch batch_of(const LayoutCase& layout, const std::function<bool(int64_t, int64_t)>& masked = {}) {
  Batch batch;
  for (int64_t i = 0; i < layout.num_micro_batches; ++i)
    batch.push_back(make_micro_batch(layout, i, masked));
  return batch;
}

ProcessGroups groups_of(ThreadRank& rank, const LayoutCase& layout) {
  return rank.process_groups(DeviceMesh(layout.parallel, rank.size()));
}

/// Two steps on `batch` have the losses and gradient norms of one rank. The second loss is that of
/// the weights which the first step made of the gradients.
void expect_equals_one_rank(const MeshCase& mesh, const Batch& batch) {
  SCOPED_TRACE(mesh.text);
  MeshSystem alone(mesh.layout, {}, make_single_process_groups());
  const StepMetrics expected[] = {alone.step(batch), alone.step(batch)};
  run_thread_ranks(static_cast<int>(mesh.world_size), [&](ThreadRank& rank) {
    MeshSystem system(mesh.layout, mesh.layout.parallel, groups_of(rank, mesh.layout));
    for (const StepMetrics& step : expected) {
      const StepMetrics metrics = system.step(batch);
      EXPECT_EQ(metrics.loss_tokens, step.loss_tokens);
      EXPECT_NEAR(metrics.loss, step.loss, tolerance(step.loss));
      EXPECT_NEAR(metrics.gradient_norm, step.gradient_norm, tolerance(step.gradient_norm));
    }
  });
}

int64_t loss_tokens_of_rank(const MicroBatch& batch, int rank, int size) {
  int64_t count = 0;
  for (const PositionRange& range : context_positions(batch.positions, rank, size))
    count += std::count_if(batch.targets.begin() + range.begin * batch.sequences,
                           batch.targets.begin() + range.end * batch.sequences,
                           [](int32_t target) { return target != kIgnoreTarget; });
  return count;
}

// Megatron-LM#673, #906, #7452: means over local token counts instead of one global count.
TEST(KnownBugs, UnequalUnmaskedTokensPerContextRank) {
  for (const char* line :
       {"cswa2: cp2", "swa3: cp2 tp2 sp", "moe: cp2 dp2 ep2", "cswa2: cp2 pp2"}) {
    const MeshCase mesh(line);
    const Batch batch = batch_of(
        mesh.layout, [](int64_t position, int64_t) { return position >= 8 && position % 8 != 4; });
    EXPECT_NE(loss_tokens_of_rank(batch[0], 0, 2), loss_tokens_of_rank(batch[0], 1, 2));
    expect_equals_one_rank(mesh, batch);
  }
}

// Megatron-LM#1764: NaN where the slice of a rank is fully masked.
TEST(KnownBugs, AContextRankWithoutUnmaskedTokens) {
  for (const char* line : {"cswa2: cp2", "cswa2: cp4", "naive2: cp2 dp2", "moe: cp2 tp2 sp ep2"}) {
    const MeshCase mesh(line);
    const auto size = static_cast<int>(mesh.layout.parallel.context_parallel_size);
    // Of zigzag pieces the first and the last are rank 0's.
    const int64_t piece = mesh.layout.shape.positions / (2 * size);
    const Batch batch =
        batch_of(mesh.layout, [=](int64_t position, int64_t) { return position >= piece; });
    for (int rank = 1; rank < size; ++rank) EXPECT_EQ(loss_tokens_of_rank(batch[0], rank, size), 0);
    expect_equals_one_rank(mesh, batch);
  }
}

// Torchtitan and others: the same with data-parallel ranks, whose micro-batches differ.
TEST(KnownBugs, ADataRankWithoutUnmaskedTokens) {
  const MeshCase mesh("cswa2: dp2");
  Batch batch = batch_of(mesh.layout);
  for (size_t i = 1; i < batch.size(); i += 2) std::ranges::fill(batch[i].targets, kIgnoreTarget);
  expect_equals_one_rank(mesh, batch);
}

// Megatron-LM PR#5916, TransformerEngine PR#715: experts counted tp times, or once too few.
TEST(KnownBugs, GradientNormWithExpertAndTensorParallel) {
  for (const char* line : {"moe: tp2 sp ep2", "moe: dp2 tp2 sp ep2", "moe: dp2 tp2 sp ep4",
                           "moe: dp2 tp2 sp ep2 etp2", "moe: dp2 tp2 sp", "moe: tp2 sp cp2 etp2"}) {
    const MeshCase mesh(line);
    expect_equals_one_rank(mesh, batch_of(mesh.layout));
  }
}

TEST(KnownBugs, KeyHeadsFewerThanTensorRanks) {
  for (const char* line : {"cswa2: tp2 kv1", "cswa2: tp4 kv2 sp", "olmo2: tp4 kv1", "naive2: tp8",
                           "swa3: tp4 kv1 dp2"}) {
    const MeshCase mesh(line);
    expect_equals_one_rank(mesh, batch_of(mesh.layout));
  }
}

// Both ends of the pipeline hold the embedding: they must stay the same bits.
TEST(KnownBugs, EmbeddingsTiedAcrossThePipelinesEnds) {
  for (const char* line : {"cswa2: pp2", "cswa2: pp4 zb", "swa3: pp2 vp2 dp2", "cswa2: pp2 tp2 sp",
                           "cswa2: pp2 cp2 gpipe"}) {
    SCOPED_TRACE(line);
    MeshCase mesh(line);
    mesh.layout.dtype = DType::bf16;
    const Batch batch = batch_of(mesh.layout);
    run_thread_ranks(static_cast<int>(mesh.world_size), [&](ThreadRank& rank) {
      MeshSystem system(mesh.layout, mesh.layout.parallel, groups_of(rank, mesh.layout));
      ProcessGroup& pp = *system.groups.pp;
      for (int step = 0; step < 4; ++step) system.step(batch);
      const bool first = pp.rank() == 0;
      if (!first && pp.rank() != pp.size() - 1) return;
      int64_t index = 0;
      while (system.store[index].spec.name != "embedding.weight") ++index;
      const Tensor table = system.store[index].value;
      std::vector<BFloat16> other(static_cast<size_t>(table.numel()));
      const Exchange both[] = {{.peer = first ? pp.size() - 1 : 0,
                                .send = table,
                                .receive = cpu_tensor(other.data(), table.shape)}};
      pp.exchange(both);
      EXPECT_EQ(std::memcmp(other.data(), table.data, static_cast<size_t>(table.bytes())), 0);
    });
  }
}

// Rows are [S, B, K, H], cut along S only: what a stage receives has all copies of each of its
// positions, and lengths whose rows could be cut evenly only through a position are refused.
TEST(KnownBugs, CopiesOfAPositionAreNeverCutByABoundary) {
  const MeshCase mesh("swa3: cp2 tp2 sp pp2 kv2");
  run_thread_ranks(8, [&](ThreadRank& rank) {
    MeshSystem system(mesh.layout, mesh.layout.parallel, groups_of(rank, mesh.layout));
    const LayoutCase& layout = mesh.layout;
    if (system.groups.pp->rank() == 0) return;
    const Shape expected{layout.shape.positions / 4, layout.shape.sequences, layout.model.copies(),
                         layout.model.hidden_size};
    EXPECT_TRUE(system.stage.forward_buffer(0, 0).shape == expected);
  });

  RunConfig config = MeshCase("naive2: tp4 sp").run_config();
  config.data.seq_length = 30;  // 60 rows of two copies would come out even
  EXPECT_THAT(validate_layout(config, 4),
              testing::ElementsAre(testing::HasSubstr("seq-length 30 over 1 context x 4 tensor")));
  RunConfig shared = MeshCase("naive2: cp2").run_config();
  shared.data.seq_length = 30;
  EXPECT_THAT(validate_layout(shared, 2),
              testing::ElementsAre(testing::HasSubstr("seq-length 30")));
}

/// A rank's part of the run's data.
std::unique_ptr<BatchLoader> loader_of(const LayoutCase& layout, int shard, int num_shards) {
  const DataConfig config{.mock_data = true, .seq_length = layout.shape.positions};
  const BatchPlan plan{.seq_length = layout.shape.positions,
                       .micro_batch_size = layout.shape.sequences,
                       .global_batch_size = layout.num_micro_batches * layout.shape.sequences,
                       .shard = shard,
                       .num_shards = num_shards,
                       .num_samples = 1000};
  return make_batch_loader(config, DataSplit::train, plan,
                           {.size = layout.model.vocab_size, .end_of_document = 0});
}

/// Steps on what `loader` gives; the loss of the last one.
double train(MeshSystem& system, BatchLoader& loader, int64_t steps) {
  double loss = 0;
  while (steps-- > 0) loss = system.run.step_of_shard(loader.next()).loss;
  return loss;
}

// Weights of one mesh, and the samples it has consumed, go on in another.
TEST(KnownBugs, ResumeOnAnotherDataParallelSize) {
  const std::string path =
      (std::filesystem::path(testing::TempDir()) / "phalanx_resume_weights.h5").string();
  MeshCase before("cswa2: dp4 tp2");
  before.layout.num_micro_batches = 8;
  double expected = 0;
  run_thread_ranks(8, [&](ThreadRank& rank) {
    MeshSystem system(before.layout, before.layout.parallel, groups_of(rank, before.layout));
    const auto loader =
        loader_of(before.layout, system.groups.dp->rank(), system.groups.dp->size());
    train(system, *loader, 2);
    save_weights(path, {.step = 2, .consumed_samples = loader->consumed_samples()},
                 {system.store, system.optimizer.shards(), system.backend, *system.groups.world});
    const double loss = train(system, *loader, 1);
    if (rank.rank() == 0) expected = loss;
  });
  for (const char* line : {"cswa2: dp2", "cswa2: dp8", "cswa2: dp2 pp2 cp2", "cswa2: tp4 sp kv4"}) {
    MeshCase after(line);
    after.layout.num_micro_batches = before.layout.num_micro_batches;  // the same global batch
    run_thread_ranks(static_cast<int>(after.world_size), [&](ThreadRank& rank) {
      MeshSystem system(after.layout, after.layout.parallel, groups_of(rank, after.layout));
      const WeightsInfo info =
          load_weights(path, "", system.store, system.backend, *system.groups.world);
      const auto loader =
          loader_of(after.layout, system.groups.dp->rank(), system.groups.dp->size());
      loader->seek(info.consumed_samples);
      EXPECT_NEAR(train(system, *loader, 1), expected, tolerance(expected)) << line;
    });
  }
  std::filesystem::remove(path);
}

/// One rank fails in a collective of `group`; the run must end, with that rank's own words.
void expect_ends_with_all_ranks(const char* line,
                                std::unique_ptr<ProcessGroup> ProcessGroups::*group,
                                Collective failing) {
  SCOPED_TRACE(line);
  const MeshCase mesh(line);
  const Batch batch = batch_of(mesh.layout);
  std::mutex mutex;
  int64_t ended = 0;
  const auto run = [&](ThreadRank& rank) {
    ProcessGroups groups = groups_of(rank, mesh.layout);
    if (rank.rank() == 1)
      groups.*group = std::make_unique<FaultyProcessGroup>(
          std::move(groups.*group), [failing](Collective operation, const Tensor&) {
            if (operation == failing) fail("out of luck");
            return FaultyProcessGroup::Fault::none;
          });
    try {
      MeshSystem system(mesh.layout, mesh.layout.parallel, std::move(groups));
      system.step(batch);
    } catch (...) {
      const std::scoped_lock lock(mutex);
      ++ended;
      throw;
    }
  };
  try {
    run_thread_ranks(static_cast<int>(mesh.world_size), run);
    ADD_FAILURE() << "no rank failed";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("out of luck"));
  }
  EXPECT_EQ(ended, mesh.world_size);
}

TEST(KnownBugs, AnExceptionOnOneRankOnlyEndsAll) {
  expect_ends_with_all_ranks("cswa2: tp2 dp2", &ProcessGroups::tp, Collective::all_reduce);
  expect_ends_with_all_ranks("cswa2: tp2 sp dp2", &ProcessGroups::tp, Collective::reduce_scatter);
  expect_ends_with_all_ranks("cswa2: pp2 dp2", &ProcessGroups::pp, Collective::exchange);
  expect_ends_with_all_ranks("cswa2: pp4 zb", &ProcessGroups::pp, Collective::exchange);
  expect_ends_with_all_ranks("swa3: cp4", &ProcessGroups::cp, Collective::exchange);
  expect_ends_with_all_ranks("cswa2: dp4", &ProcessGroups::dp_cp, Collective::reduce_scatter);
  expect_ends_with_all_ranks("moe: dp4 ep4", &ProcessGroups::ep, Collective::all_to_all);
  expect_ends_with_all_ranks("cswa2: dp2 tp2 pp2", &ProcessGroups::world, Collective::all_reduce);
}

}  // namespace
}  // namespace phalanx::test
