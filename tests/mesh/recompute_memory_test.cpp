// Recomputation: activation memory really falls, and runs take exactly what was planned.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "kernels/null_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/mesh/mesh_case.h"
#include "tests/mesh/mesh_system.h"

namespace phalanx::test {
namespace {

/// A model of realistic proportions; measured, never run.
ModelConfig real_model() {
  ModelConfig model;
  model.num_layers = 16;
  model.hidden_size = 1024;
  model.ffn_hidden_size = 2816;
  model.num_attention_heads = 16;
  model.num_query_groups = 4;
  model.vocab_size = 50257;
  model.phd_copies = 2;
  return model;
}

/// Of rank 0 of `mesh`.
PhdStage::MemoryPlan plan_of(const ModelConfig& model, const ParallelConfig& parallel,
                             int64_t world_size) {
  const StageShape shape{.positions = 4096, .sequences = 1};
  ProcessGroups groups = make_measuring_process_groups(DeviceMesh(parallel, world_size), 0);
  NullBackend null(Device::cpu);
  ParameterStore store;
  PhdStage stage(model, store, null, groups, stage_options(model, parallel, shape.positions, 0));
  return stage.plan_memory(shape, DType::bf16, {});
}

int64_t saved_bytes(const ModelConfig& model, const ParallelConfig& parallel, const char* word) {
  ParallelConfig with = parallel;
  with.recompute = {word};
  const int64_t ranks = with.tensor_model_parallel_size * with.pipeline_model_parallel_size;
  return plan_of(model, with, ranks).saved_bytes_per_slot.front();
}

// Per layer, u = S K H bf16 bytes: layer recomputation keeps the layer's output, u; attention's
// spares q and the output (2 u), k and v (G/A u each), and the log-sum-exp.
TEST(RecomputeMemory, EachLevelKeepsLess) {
  for (const ParallelConfig& parallel :
       {ParallelConfig{},
        ParallelConfig{.tensor_model_parallel_size = 4, .sequence_parallel = true},
        ParallelConfig{.pipeline_model_parallel_size = 2}}) {
    const ModelConfig model = real_model();
    const int64_t none = saved_bytes(model, parallel, "none");
    const int64_t attention = saved_bytes(model, parallel, "attention");
    const int64_t layer = saved_bytes(model, parallel, "layer");
    const int64_t u = 4096 * model.copies() * model.hidden_size * 2;
    const int64_t tp = parallel.tensor_model_parallel_size;
    const int64_t full_layers = model.num_layers / parallel.pipeline_model_parallel_size - 1;
    EXPECT_GT(none - attention, full_layers * (2 * u + 2 * u / 4) / tp);
    EXPECT_GT(attention, 2 * layer);
    // Embedding and layer outputs; where the model ends here, the last layer's have one copy.
    EXPECT_LE(layer, (model.num_layers / parallel.pipeline_model_parallel_size + 2) * u / tp);
  }
}

TEST(RecomputeMemory, ExpertsFallToo) {
  ModelConfig model = real_model();
  model.num_experts = 16;
  model.moe_router_topk = 4;
  const int64_t none = saved_bytes(model, {}, "none");
  const int64_t attention = saved_bytes(model, {}, "attention");
  const int64_t layer = saved_bytes(model, {}, "layer");
  EXPECT_GT(none, attention);
  EXPECT_GT(attention, 4 * layer);
}

// The plan is neither exceeded nor generous: after a step the peak of the fullest slot is the plan.
// (Dense models: how many rows experts get is known only then.)
TEST(RecomputeMemory, RunsTakeWhatWasPlanned) {
  for (const char* mesh : {"cswa2: dp2", "swa3: tp2", "swa3: tp2 sp", "cswa2: cp2", "cswa2: pp2",
                           "cswa2: pp2 zb", "untied: pp2 vp2", "documents: pp2 gpipe tp2 sp"}) {
    int64_t before = std::numeric_limits<int64_t>::max();
    for (const char* word : {"none", "attention", "layer"}) {
      const MeshCase item(std::string(mesh) + " recompute=" + word);
      if (item.layout.parallel.pipeline_schedule == PipelineScheduleKind::zero_bubble &&
          std::string(word) == "layer")
        continue;  // refused by validation
      SCOPED_TRACE(item.text);
      std::vector<MicroBatch> batch;
      for (int64_t i = 0; i < item.layout.num_micro_batches; ++i) {
        batch.push_back(make_micro_batch(item.layout, i));
        // The plan has room for every optional input.
        batch.back().position_ids.resize(batch.back().tokens.size());
        batch.back().document_start.resize(batch.back().tokens.size());
      }
      std::vector<int64_t> peaks(static_cast<size_t>(item.world_size));
      run_thread_ranks(static_cast<int>(item.world_size), [&](ThreadRank& rank) {
        const ParallelConfig& parallel = item.layout.parallel;
        MeshSystem system(item.layout, parallel,
                          rank.process_groups(DeviceMesh(parallel, rank.size())));
        EXPECT_EQ(system.stage.peak_saved_bytes(), 0);
        system.step(batch);
        const int64_t peak = system.stage.peak_saved_bytes();
        const auto plan =
            system.stage.plan_memory(item.layout.shape, item.layout.dtype, system.run.slots());
        EXPECT_EQ(peak, *std::ranges::max_element(plan.saved_bytes_per_slot));
        peaks[static_cast<size_t>(rank.rank())] = peak;
      });
      EXPECT_LT(peaks.front(), before);
      before = peaks.front();
    }
  }
}

}  // namespace
}  // namespace phalanx::test
