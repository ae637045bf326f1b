// What is said about a pipeline, before the run and after it.
#include "core/train/pipeline_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/model/model_cost.h"
#include "parallel/thread_process_group.h"
#include "tests/train/tiny_run.h"

namespace phalanx {
namespace {

RunConfig pipeline_run(int64_t stages, const std::string& layout) {
  RunConfig config = tiny_run();
  config.model.num_layers = 8;
  config.model.vocab_size = 8;  // a head that costs almost nothing
  config.parallel.pipeline_model_parallel_size = stages;
  config.parallel.pipeline_layout = layout;
  return config;
}

double bubble_of(const RunConfig& config, int64_t num_micro_batches) {
  return predicted_bubble_fraction({.model = config.model,
                                    .parallel = config.parallel,
                                    .seq_length = config.data.seq_length,
                                    .num_micro_batches = num_micro_batches});
}

std::string text_of(const RunConfig& config) {
  return pipeline_text({.model = config.model,
                        .parallel = config.parallel,
                        .seq_length = config.data.seq_length,
                        .num_micro_batches = 8});
}

TEST(PredictedBubble, IsTheClosedFormulaForEvenStages) {
  // 1F1B: (p - 1) / (m + p - 1) (Narayanan et al. 2021). Stages differ by the head, which at
  // padded vocabulary V costs 2 V H of a stage's FLOPs.
  const RunConfig config = pipeline_run(4, "2,2,2,2");
  const double head_share = head_forward_flops(config.model) /
                            (2 * layer_forward_flops(config.model, 0, config.data.seq_length));
  for (const int64_t m : {4, 8, 16})
    EXPECT_NEAR(bubble_of(config, m), 3.0 / static_cast<double>(m + 3), head_share);
  EXPECT_EQ(bubble_of(pipeline_run(1, ""), 8), 0.0);
}

TEST(PredictedBubble, KnowsUnevenStagesZeroBubbleAndRecompute) {
  const double even = bubble_of(pipeline_run(4, "2,2,2,2"), 8);
  EXPECT_GT(bubble_of(pipeline_run(4, "1,3,2,2"), 8), even + 0.05);
  RunConfig zero_bubble = pipeline_run(4, "2,2,2,2");
  zero_bubble.parallel.pipeline_schedule = PipelineScheduleKind::zero_bubble;
  EXPECT_LT(bubble_of(zero_bubble, 8), 0.7 * even);
  // A stage that alone recomputes is slower than the others, though part of it falls into the
  // time it idles anyway.
  RunConfig recompute = pipeline_run(4, "2,2,2,2");
  recompute.parallel.recompute = {"layer", "none", "none", "none"};
  EXPECT_GT(bubble_of(recompute, 8), even + 0.03);
}

TEST(PipelineText, NamesStagesSharesAndRecompute) {
  RunConfig config = pipeline_run(2, "");
  config.model.num_layers = 4;
  config.parallel.pipeline_layout = "1,2,0,1";
  config.parallel.num_virtual_stages_per_pipeline_rank = 2;
  config.parallel.recompute = {"none", "layer"};
  const std::string text = text_of(config);
  EXPECT_THAT(text, testing::HasSubstr("pipeline: interleaved, 4 stages, 8 micro-batches"));
  EXPECT_THAT(text, testing::HasSubstr("stage 0 on pipeline rank 0: embedding, layer 0, "));
  EXPECT_THAT(text, testing::HasSubstr("stage 1 on pipeline rank 1: layers 1-2, "));
  EXPECT_THAT(text, testing::HasSubstr("stage 2 on pipeline rank 0: no layers, 0.0 %"));
  EXPECT_THAT(text, testing::HasSubstr("stage 3 on pipeline rank 1: layer 3, head, "));
  EXPECT_THAT(text, testing::HasSubstr("recomputes layer"));
  EXPECT_EQ(text_of(pipeline_run(1, "")), "");
}

TEST(BubbleMeter, IsTheMeanOfWaitingOverTimeOfAllRanks) {
  run_thread_ranks(2, [](ThreadRank& rank) {
    ParallelConfig parallel;
    parallel.pipeline_model_parallel_size = 2;
    const ProcessGroups groups = rank.process_groups(DeviceMesh(parallel, 2));
    BubbleMeter meter(groups);
    EXPECT_EQ(meter.fraction(), 0.0);
    groups.pp->barrier();  // waiting outside of steps does not count
    meter.begin_step();
    const double before = groups.pp->waiting_seconds();
    groups.pp->barrier();
    const double waited = groups.pp->waiting_seconds() - before;
    meter.end_step(2.0);
    const double sum = groups.world->all_reduce(waited, ReduceOp::sum);
    EXPECT_DOUBLE_EQ(meter.fraction(), sum / 2.0 / 2.0);
    EXPECT_GT(sum, 0.0);
  });
}

}  // namespace
}  // namespace phalanx
