// Validation of whole runs: what shows only when the parts meet.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

TEST(ValidateRun, UnsupportedAxesAreSaid) {
  RunConfig config = legal();
  config.parallel.tensor_model_parallel_size = 2;
  config.model.num_experts = 8;
  EXPECT_THAT(
      validate(config, 2),
      ElementsAre("tensor-model-parallel-size 2 is not supported by this version yet; use 1",
                  HasSubstr("num-experts 8 is not supported")));
}

TEST(ValidateRun, MissingDataIsNamed) {
  RunConfig config = legal();
  config.data.mock_data = false;
  EXPECT_THAT(validate(config, 1), ElementsAre(HasSubstr("data-path is empty")));
  config.data.data_path = {"/nowhere/text"};
  EXPECT_THAT(validate(config, 1), ElementsAre(HasSubstr("there is no file /nowhere/text.idx"),
                                               HasSubstr("there is no file /nowhere/text.bin")));
}

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
