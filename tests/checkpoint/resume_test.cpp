// Where a start goes on, and what it is refused for before it takes anything over.
#include <gmock/gmock.h>

#include <filesystem>

#include "core/checkpoint/save_folder.h"
#include "core/checkpoint/verify.h"
#include "core/train/resume_certificate.h"
#include "data/file_io.h"
#include "tests/checkpoint/resume_run.h"

namespace phalanx::test {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class Resume : public testing::Test {
 protected:
  Resume() : run_(fresh_folder("resume")), config_(run_config(run_)) {}
  std::string save() const { return run_ + "/checkpoints"; }
  std::string folder(int64_t iteration) const { return save() + "/" + iteration_folder(iteration); }
  /// As if the run had been killed after iteration 4.
  void lose_the_end() const {
    fs::remove_all(folder(6));
    write_file(save() + "/latest_checkpointed_iteration.txt", "4\n");
  }

  std::string run_;
  RunConfig config_;
};

TEST_F(Resume, AMistakenStartIsRefusedBeforeItClaims) {
  ASSERT_EQ(train(config_).error, "");
  const std::string epoch = read_file(save() + "/epoch");
  const auto expect_refused = [&](const RunConfig& config, const std::string& ini,
                                  const std::string& reason) {
    EXPECT_THAT(train<UsageError>(config, ini).error, HasSubstr(reason));
    EXPECT_EQ(read_file(save() + "/epoch"), epoch) << reason;
  };
  const std::string same = "seed = 1234\n";
  RunConfig longer = config_;
  longer.training.train_iters = 7;
  expect_refused(longer, same, "a longer order is another one");
  RunConfig precise = config_;
  precise.training.precision = ComputePrecision::fp64;
  expect_refused(precise, same, "use the --precision of that run");
  RunConfig wider = config_;
  wider.model.ffn_hidden_size = 64;
  expect_refused(wider, same, "mlp.gate.weight is [48, 32], expected [64, 32]");
  RunConfig never = config_;
  never.checkpoint.resume = ResumeMode::never;
  expect_refused(never, same, "holds checkpoints of an earlier run");
  expect_refused(config_, "seed = 1\n", "seed is '1', the checkpoint's is '1234'");
}

TEST_F(Resume, WithoutSavingARunStillGoesOn) {
  ASSERT_EQ(train(config_).error, "");
  lose_the_end();
  const std::string weights = read_file(run_ + "/weights.h5");
  const std::string epoch = read_file(save() + "/epoch");
  RunConfig unsaved = config_;
  unsaved.checkpoint.save_interval = 0;
  const Outcome outcome = train(unsaved);
  EXPECT_EQ(outcome.error, "");
  EXPECT_THAT(outcome.log, AllOf(HasSubstr("resumed from " + folder(4)),
                                 HasSubstr("resume verified, bit for bit")));
  EXPECT_TRUE(read_file(run_ + "/weights.h5") == weights);
  EXPECT_EQ(read_file(save() + "/epoch"), epoch);
  unsaved.checkpoint.resume = ResumeMode::never;
  EXPECT_THAT(train<UsageError>(unsaved).error, HasSubstr("holds checkpoints of an earlier run"));
}

TEST_F(Resume, ALongerOrderIsTakenIfItIsAllowed) {
  ASSERT_EQ(train(config_).error, "");
  config_.training.train_iters = 8;
  config_.checkpoint.allow_changed_options = {"train-iters"};
  const Outcome outcome = train(config_);
  EXPECT_EQ(outcome.error, "");
  EXPECT_THAT(outcome.log, HasSubstr("the data order is a new one, made for 64 samples"));
  EXPECT_EQ(read_checkpoint_manifest(folder(8)).order_samples, 64);
  EXPECT_EQ(read_checkpoint_manifest(folder(8)).counters.consumed_samples, 64);
}

TEST_F(Resume, AShorterRunKeepsTheOrderItBeganWith) {
  ASSERT_EQ(train(config_).error, "");
  lose_the_end();
  config_.training.train_iters = 5;
  EXPECT_THAT(train(config_).log, HasSubstr("resume verified, bit for bit"));
  EXPECT_EQ(read_checkpoint_manifest(folder(5)).order_samples, 48);
}

// Batches of half the size: two of them are the next whole one, sample for sample.
TEST_F(Resume, AnotherBatchSizeTakesTheSamplesThatFollow) {
  ASSERT_EQ(train(config_).error, "");
  lose_the_end();
  const auto hash_after = [&](int64_t iteration) {
    const std::string path = certificate_path(folder(iteration));
    return parse_certificate(read_file(path), path).batch_hash;
  };
  const uint64_t whole = hash_after(4);
  fs::remove(certificate_path(folder(4)));
  config_.training.global_batch_size = 4;
  config_.checkpoint.save_interval = 1;
  config_.checkpoint.save_keep_last = 0;
  ASSERT_EQ(train(config_).error, "");
  EXPECT_EQ(hash_after(4) + hash_after(5), whole);
  EXPECT_EQ(read_checkpoint_manifest(folder(6)).counters.consumed_samples, 40);
}

TEST_F(Resume, ACertificateOfAnotherCheckpointIsFound) {
  ASSERT_EQ(train(config_).error, "");
  lose_the_end();
  fs::copy_file(certificate_path(folder(2)), certificate_path(folder(4)),
                fs::copy_options::overwrite_existing);
  EXPECT_THAT(verify_checkpoint(folder(4), {}).damages,
              testing::ElementsAre(HasSubstr("it is of step 3, expected 5")));
  EXPECT_THAT(train(config_).error, HasSubstr("is of step 3, expected 5"));
}

TEST_F(Resume, MovedDataIsComparedByTheBatchAlone) {
  const std::string before = "[Data]\ndata-path = a  # default: empty\n";
  const std::string after = "[Data]\ndata-path = b  # default: empty\n";
  ASSERT_EQ(train(config_, before).error, "");
  lose_the_end();
  EXPECT_THAT(train<UsageError>(config_, after).error, HasSubstr("data-path is 'b'"));
  config_.checkpoint.allow_changed_options = {"data-path"};
  const Outcome outcome = train(config_, after);
  EXPECT_EQ(outcome.error, "");
  EXPECT_THAT(outcome.log, HasSubstr("resume verified, bit for bit"));
}

TEST_F(Resume, OtherDataIsTakenIfItIsAllowed) {
  const std::string before = "[Data]\ndata-path = a  # default: empty\n";
  const std::string after = "[Data]\ndata-path = b  # default: empty\n";
  ASSERT_EQ(train(config_, before).error, "");
  lose_the_end();
  config_.training.seed = 5;  // another order of the mock data: what other files would be
  EXPECT_THAT(train(config_, before).error, HasSubstr("the data of step 5 has hash"));
  config_.checkpoint.allow_changed_options = {"data-path"};
  const Outcome outcome = train(config_, after);
  EXPECT_EQ(outcome.error, "");
  EXPECT_THAT(outcome.log, HasSubstr("the data files are others than the checkpoint's"));
}

TEST_F(Resume, ExpertsAreNotComparedOverOtherMicroBatches) {
  config_.parallel.tensor_model_parallel_size = 1;
  config_.model.num_experts = 4;
  config_.model.moe_router_topk = 2;
  const std::string before = "[Training]\nmicro-batch-size = 1\n";
  const std::string after = "[Training]\nmicro-batch-size = 2  # default: 1\n";
  ASSERT_EQ(train(config_, before).error, "");
  lose_the_end();
  config_.training.micro_batch_size = 2;
  const Outcome outcome = train(config_, after);
  EXPECT_EQ(outcome.error, "");
  EXPECT_THAT(outcome.log, AllOf(HasSubstr("resume not verified: the changed options"),
                                 Not(HasSubstr("resume verified"))));
}

}  // namespace
}  // namespace phalanx::test
