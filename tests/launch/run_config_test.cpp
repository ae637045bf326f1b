// Validation of whole runs: what shows only when the parts meet.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "core/config.h"

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

RunConfig legal() {
  RunConfig config;
  config.data.mock_data = true;
  config.training.run_dir = "run";
  config.training.train_iters = 10;
  return config;
}

TEST(ValidateRun, LegalRunHasNoProblems) {
  EXPECT_THAT(validate(legal(), 4), IsEmpty());
}

TEST(ValidateRun, GlobalBatchNamesBothNeighbours) {
  RunConfig config = legal();
  config.training.micro_batch_size = 3;
  config.training.global_batch_size = 16;
  EXPECT_THAT(validate(config, 2),
              ElementsAre("global-batch-size 16 is not divisible by micro-batch-size 3 x 2 "
                          "data-parallel ranks; try 12 or 18"));
}

TEST(ValidateRun, LengthOfTheRun) {
  RunConfig config = legal();
  config.training.train_samples = 10;
  EXPECT_THAT(validate(config, 1), ElementsAre(HasSubstr("contradict each other")));
  config.training.train_samples = config.training.train_iters = 0;
  EXPECT_THAT(validate(config, 1), ElementsAre(HasSubstr("say how long to train")));
}

TEST(ValidateRun, AxesThatFitNeitherRanksNorModelAreNamedTogether) {
  RunConfig config = legal();
  config.parallel.tensor_model_parallel_size = 3;
  config.parallel.expert_model_parallel_size = 2;
  config.parallel.pipeline_layout = "3,2";
  config.parallel.recompute = {"sometimes"};
  EXPECT_THAT(
      validate(config, 4),
      ::testing::UnorderedElementsAre(
          HasSubstr("tensor-model-parallel-size 3 does not divide the number of ranks 4"),
          HasSubstr("tensor-model-parallel-size 3 does not divide num-attention-heads 4"),
          HasSubstr("tensor-model-parallel-size 3 neither divides num-query-groups 4"),
          HasSubstr("tensor-model-parallel-size 3 does not divide ffn-hidden-size 352"),
          HasSubstr("pipeline-layout 3,2"), HasSubstr("'sometimes'"),
          HasSubstr("expert-model-parallel-size 2 and expert-tensor-parallel-size 1 share out")));
}

TEST(ValidateRun, MissingDataIsNamed) {
  RunConfig config = legal();
  config.data.mock_data = false;
  EXPECT_THAT(validate(config, 1), ElementsAre(HasSubstr("data-path is empty")));
  config.data.data_path = {"/nowhere/text"};
  EXPECT_THAT(validate(config, 1), ElementsAre(HasSubstr("there is no file /nowhere/text.idx"),
                                               HasSubstr("there is no file /nowhere/text.bin")));
}

TEST(ValidateRun, PathsOfSplitsContradictTheCommonOne) {
  RunConfig config = legal();
  config.data.mock_data = false;
  config.data.data_path =
      config.data.test_data_path = {PHALANX_SOURCE_DIR "/tests/golden/indexed_u16"};
  EXPECT_THAT(validate(config, 1),
              ElementsAre("data-path and test-data-path contradict each other; give one"));
  config.data.test_data_path.clear();
  EXPECT_THAT(validate(config, 1), IsEmpty());
  config.data.data_path = {"0.5", config.data.data_path[0], "x", config.data.data_path[0]};
  EXPECT_THAT(validate(config, 1), ElementsAre(HasSubstr("data-path: data paths must be all")));
}

struct IllegalRun {
  const char* name;
  void (*spoil)(RunConfig&);
  const char* expected;
};

class IllegalRuns : public ::testing::TestWithParam<IllegalRun> {};

TEST_P(IllegalRuns, AreNamedWithTheNearestLegalValue) {
  RunConfig config = legal();
  GetParam().spoil(config);
  EXPECT_THAT(validate(config, 4), ElementsAre(HasSubstr(GetParam().expected)));
}

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

INSTANTIATE_TEST_SUITE_P(
    All, IllegalRuns,
    ::testing::Values(
        IllegalRun{"ranks", [](RunConfig& c) { c.training.global_batch_size = 3; },
                   "global-batch-size 3 is not divisible by micro-batch-size 1 x 4 data-parallel "
                   "ranks; try 4"},
        IllegalRun{"micro", [](RunConfig& c) { c.training.micro_batch_size = 0; },
                   "micro-batch-size 0 is too small; the smallest value is 1"},
        IllegalRun{"iters", [](RunConfig& c) { c.training.train_iters = -1; },
                   "train-iters -1 is negative; the nearest is 1"},
        IllegalRun{"folder", [](RunConfig& c) { c.training.run_dir.clear(); }, "run-dir is empty"},
        IllegalRun{"min_lr", [](RunConfig& c) { c.optimizer.min_lr = 1; },
                   "min-lr 1 is above lr 0.0003; the nearest is 0.0003"},
        IllegalRun{"lr_nan", [](RunConfig& c) { c.optimizer.lr = kNan; }, "lr nan is too small"},
        IllegalRun{"beta", [](RunConfig& c) { c.optimizer.adam_beta1 = 1; },
                   "adam-beta1 1 is not at least 0 and below 1; the nearest is 0.9"},
        IllegalRun{"epsilon", [](RunConfig& c) { c.optimizer.adam_eps = 0; },
                   "adam-eps 0 must be positive; try 1e-8"},
        IllegalRun{"warmup", [](RunConfig& c) { c.optimizer.lr_warmup_iters = 11; },
                   "lr-warmup-iters 11 is more than the 10 steps of the schedule"},
        IllegalRun{"decay",
                   [](RunConfig& c) {
                     c.optimizer.lr_warmup_iters = 8;
                     c.optimizer.lr_decay_iters = 7;
                   },
                   "lr-warmup-iters 8 is more than the 7 steps of the schedule"},
        IllegalRun{"product", [](RunConfig& c) { c.parallel.tensor_model_parallel_size = 0; },
                   "tensor-model-parallel-size 0"},
        IllegalRun{"sequence",
                   [](RunConfig& c) {
                     c.parallel.tensor_model_parallel_size = 4;
                     c.parallel.sequence_parallel = true;
                     c.data.seq_length = 1022;
                   },
                   "try seq-length 1020 or 1024"},
        IllegalRun{"context",
                   [](RunConfig& c) {
                     c.parallel.context_parallel_size = 4;
                     c.model.phd_copies = 2;
                     c.data.seq_length = 160;
                   },
                   "seq-length 160 cannot be cut"},
        IllegalRun{"stages",
                   [](RunConfig& c) {
                     c.parallel.pipeline_model_parallel_size = 4;
                     c.model.num_layers = 3;
                   },
                   "more than num-layers 3"},
        IllegalRun{"interleaved",
                   [](RunConfig& c) {
                     c.parallel.pipeline_model_parallel_size = 2;
                     c.parallel.num_virtual_stages_per_pipeline_rank = 2;
                     c.training.global_batch_size = 6;
                   },
                   "use 2 or 4"},
        IllegalRun{"zero_bubble",
                   [](RunConfig& c) {
                     c.parallel.pipeline_schedule = PipelineScheduleKind::zero_bubble;
                     c.parallel.recompute = {"layer"};
                   },
                   "use recompute attention"},
        IllegalRun{"experts",
                   [](RunConfig& c) {
                     c.model.num_experts = 6;
                     c.model.moe_router_topk = 2;
                     c.parallel.expert_model_parallel_size = 4;
                   },
                   "expert-model-parallel-size 4 does not divide num-experts 6; try 2"},
        IllegalRun{"experts_tensor",
                   [](RunConfig& c) {
                     c.model.num_experts = 8;
                     c.parallel.tensor_model_parallel_size = 2;
                   },
                   "add --sequence-parallel"},
        IllegalRun{"cuda_graph",
                   [](RunConfig& c) {
                     c.training.cuda_graph = true;
                     c.parallel.tensor_model_parallel_size = 2;
                   },
                   "tensor-model-parallel-size 2 has some"},
        IllegalRun{"length", [](RunConfig& c) { c.data.seq_length = 0; }, "seq-length 0"}),
    [](const auto& test) { return test.param.name; });

TEST(ValidateRun, ProblemsOfAllPartsTogether) {
  RunConfig config = legal();
  config.model.phd_copies = 0;
  config.optimizer.min_lr = 1;
  config.optimizer.adam_beta2 = 1;
  config.training.eval_iters = 0;
  EXPECT_EQ(validate(config, 1).size(), 4u);
}

TEST(ApplyPreset, TakesShapeRecipeAndLength) {
  RunConfig config;
  apply_preset(config, *find_model_preset("hybridnorm-moe-1b-7b"));
  EXPECT_EQ(config.model.num_experts, 64);
  EXPECT_EQ(config.optimizer.min_lr, 5e-5);
  EXPECT_EQ(config.data.seq_length, 4096);
  EXPECT_EQ(config.training.global_batch_size, 1024);
}

}  // namespace
}  // namespace phalanx
