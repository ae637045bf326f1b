// Damage to a folder of checkpoints: a run that goes on there takes the newest good one, says why,
// and ends bit for bit like one that was never stopped; or it refuses, but never begins anew.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "core/checkpoint/save_folder.h"
#include "core/checkpoint/save_names.h"
#include "data/file_io.h"
#include "tests/checkpoint/damage.h"
#include "tests/checkpoint/resume_run.h"

namespace phalanx::test {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

/// A run of six steps stopped after the fourth: checkpoints of iterations 2 and 4, both certified.
class ResumeDamage : public testing::Test {
 protected:
  struct Sample {
    Sample() {
      train(run_config(root / "run"));
      weights = read_file(root / "run/weights.h5");
      fs::remove_all(root / "run/checkpoints/iter_0000006");
      write_file(root / "run/checkpoints/latest_checkpointed_iteration.txt", "4\n");
      save_files = read_files(root / "run/checkpoints");
      files = read_files(root / "run/checkpoints/iter_0000004");
      manifest = read_checkpoint_manifest(root / "run/checkpoints/iter_0000004");
    }
    ScratchFolder root;
    std::string weights;
    Files save_files;  // of the folder of checkpoints itself
    Files files;       // of its newest checkpoint
    Manifest manifest;
  };
  static void SetUpTestSuite() { sample_ = new Sample; }
  static void TearDownTestSuite() { delete sample_; }

  /// A new copy of the run's checkpoints, of which nothing else is there.
  void SetUp() override { renew(); }
  void renew() {
    fs::remove_all(run_);
    fs::create_directories(run_);
    fs::copy(sample_->root / "run/checkpoints", save_, fs::copy_options::recursive);
  }
  std::string folder(int64_t iteration) const { return save_ + "/" + iteration_folder(iteration); }
  Outcome resume() const { return train(run_config(run_)); }
  void expect_same_end(const Outcome& outcome, const std::string& what) const {
    EXPECT_EQ(outcome.error, "") << what;
    ASSERT_TRUE(file_exists(run_ + "/weights.h5")) << what;
    EXPECT_TRUE(read_file(run_ + "/weights.h5") == sample_->weights) << what;
  }
  void expect_fall_back(const Outcome& outcome, const Damage& damage) const {
    EXPECT_THAT(outcome.log, HasSubstr("CHECKPOINT DAMAGED")) << damage.what;
    for (const std::string& name : expected_names(damage, sample_->files, sample_->manifest).load)
      EXPECT_THAT(outcome.log, HasSubstr(name)) << damage.what;
    EXPECT_THAT(outcome.log, HasSubstr("resumed from " + folder(2))) << damage.what;
    EXPECT_THAT(outcome.log, HasSubstr("resume verified, bit for bit")) << damage.what;
    EXPECT_TRUE(fs::exists(folder(4) + ".damaged")) << damage.what;
    expect_same_end(outcome, damage.what);
  }
  /// Not a step was made and nothing of the checkpoints is gone.
  void expect_refused(const Outcome& outcome, const std::string& reason) const {
    EXPECT_THAT(outcome.error, HasSubstr(reason)) << outcome.log;
    EXPECT_FALSE(fs::exists(run_ + "/weights.h5")) << reason;
    EXPECT_FALSE(fs::exists(run_ + "/metrics.jsonl")) << reason;
  }

  static Sample* sample_;
  ScratchFolder root_;
  std::string run_ = root_ / "run";
  std::string save_ = root_ / "run/checkpoints";
};
ResumeDamage::Sample* ResumeDamage::sample_ = nullptr;

TEST_F(ResumeDamage, WholeItGoesOnFromTheNewest) {
  const Outcome outcome = resume();
  EXPECT_THAT(outcome.log, AllOf(HasSubstr("resumed from " + folder(4)),
                                 HasSubstr("resume verified, bit for bit"),
                                 Not(HasSubstr("DAMAGED")), Not(HasSubstr("LOST"))));
  expect_same_end(outcome, "whole");
}

TEST_F(ResumeDamage, AnyFileOfTheNewestMakesItFallBack) {
  DamageMaker maker(sample_->files, 11);
  for (const auto& [file, content] : sample_->files) {
    if (file == "next_step.json") continue;
    std::vector<Damage> list = maker.flips(file, 2);
    for (Damage& damage : maker.truncations(file, 0)) list.push_back(std::move(damage));
    for (Damage& damage : maker.replacements(file)) list.push_back(std::move(damage));
    for (const Damage& damage : list) {
      renew();
      damage.apply(folder(4));
      expect_fall_back(resume(), damage);
    }
  }
  renew();
  const Damage swapped = maker.swap("shard_00000.h5", "shard_00001.h5");
  swapped.apply(folder(4));
  expect_fall_back(resume(), swapped);
}

TEST_F(ResumeDamage, AShardOfTheCheckpointBeforeMakesItFallBack) {
  const Damage damage{"an older shard",
                      {{"shard_00001.h5", {.content = read_file(folder(2) + "/shard_00001.h5")}}}};
  damage.apply(folder(4));
  expect_fall_back(resume(), damage);
}

TEST_F(ResumeDamage, AMissingCheckpointIsToldOf) {
  fs::remove_all(folder(4));
  const Outcome outcome = resume();
  EXPECT_THAT(outcome.log, AllOf(HasSubstr("CHECKPOINT LOST"), HasSubstr("names iteration 4"),
                                 HasSubstr("resumed from " + folder(2))));
  expect_same_end(outcome, "no newest");
}

TEST_F(ResumeDamage, ACheckpointUnderAnothersNameIsPassedOver) {
  fs::rename(folder(4), folder(5));
  const Outcome outcome = resume();
  EXPECT_THAT(outcome.log, AllOf(HasSubstr("of iteration 4, expected 5"),
                                 HasSubstr("resumed from " + folder(2))));
  expect_same_end(outcome, "renamed");
}

// The certificate is no part of the state, but a run that ignored it would not know whether it is
// the run that wrote the checkpoint: it stops, says which file is wrong, and leaves all in place.
TEST_F(ResumeDamage, ADamagedCertificateStopsTheRun) {
  DamageMaker maker(sample_->files, 12);
  std::vector<Damage> list = maker.flips("next_step.json", 3);
  for (Damage& damage : maker.truncations("next_step.json", 1)) list.push_back(std::move(damage));
  list.push_back({"folder", {{"next_step.json", {.kind = Change::Kind::folder}}}});
  list.push_back({"pipe", {{"next_step.json", {.kind = Change::Kind::pipe}}}});
  for (const Damage& damage : list) {
    renew();
    damage.apply(folder(4));
    expect_refused(resume(), folder(4) + "/next_step.json");
    EXPECT_TRUE(fs::exists(folder(4) + "/COMMITTED")) << damage.what;
  }
  renew();
  fs::remove(folder(4) + "/next_step.json");
  const Outcome outcome = resume();
  EXPECT_THAT(outcome.log, HasSubstr("resume not verified"));
  expect_same_end(outcome, "no certificate");
}

TEST_F(ResumeDamage, WithoutAGoodOneItRefusesAgainAndAgain) {
  for (const int64_t iteration : {2, 4}) {
    std::string shard = read_file(folder(iteration) + "/shard_00000.h5");
    shard[shard.size() / 2] = static_cast<char>(shard[shard.size() / 2] ^ 1);
    write_file(folder(iteration) + "/shard_00000.h5", shard);
  }
  const Outcome outcome = train<CheckpointDamage>(run_config(run_));
  expect_refused(outcome, "none of 2 checkpoint(s) is good; refusing to start from scratch");
  EXPECT_THAT(outcome.error, AllOf(HasSubstr(folder(2) + "/shard_00000.h5"),
                                   HasSubstr(folder(4) + "/shard_00000.h5")));
  for (int start = 0; start < 2; ++start)
    expect_refused(resume(), "none of them is complete now: refusing to start from scratch");
  fs::remove(save_ + "/latest_checkpointed_iteration.txt");
  expect_refused(resume(), "refusing to start from scratch");
}

TEST_F(ResumeDamage, WithoutAnyCommittedFileItRefuses) {
  fs::remove(folder(2) + "/COMMITTED");
  fs::remove(folder(4) + "/COMMITTED");
  expect_refused(resume(), "refusing to start from scratch");
  fs::remove(save_ + "/latest_checkpointed_iteration.txt");
  expect_refused(resume(), "refusing to start from scratch");
  fs::remove_all(folder(2));
  expect_refused(resume(), "refusing to start from scratch");
}

TEST_F(ResumeDamage, TheLatestFileMayBeAnything) {
  DamageMaker maker(sample_->save_files, 13);
  const std::string latest = "latest_checkpointed_iteration.txt";
  std::vector<Damage> list{{latest + ": deleted", {{latest, {.kind = Change::Kind::missing}}}},
                           {latest + ": a pipe", {{latest, {.kind = Change::Kind::pipe}}}},
                           {latest + ": a newer number", {{latest, {.content = "5000\n"}}}},
                           {latest + ": an older number", {{latest, {.content = "2\n"}}}},
                           {latest + ": long", {{latest, {.content = std::string(100, '9')}}}}};
  for (int64_t byte = 0; byte < 2; ++byte)
    for (const int bit : {0, 3, 7}) list.push_back(maker.flip(latest, byte, bit));
  for (Damage& damage : maker.truncations(latest, 0)) list.push_back(std::move(damage));
  for (const Damage& damage : list) {
    renew();
    damage.apply(save_);
    const Outcome outcome = resume();
    EXPECT_THAT(outcome.log, HasSubstr("resumed from " + folder(4))) << damage.what;
    expect_same_end(outcome, damage.what);
    EXPECT_EQ(latest_iteration(save_), 6) << damage.what;
  }
}

TEST_F(ResumeDamage, AFolderForTheLatestFileIsAnErrorOfTheSave) {
  fs::remove(save_ + "/latest_checkpointed_iteration.txt");
  fs::create_directory(save_ + "/latest_checkpointed_iteration.txt");
  const Outcome outcome = resume();
  EXPECT_THAT(outcome.log, HasSubstr("resumed from " + folder(4)));
  EXPECT_THAT(outcome.error, HasSubstr("latest_checkpointed_iteration.txt"));
}

TEST_F(ResumeDamage, AnyBitOfTheEpochIsTakenOrNamed) {
  DamageMaker maker(sample_->save_files, 14);
  std::vector<Damage> list = maker.replacements("epoch");
  for (int64_t byte = 0; byte < std::ssize(sample_->save_files.at("epoch")); ++byte)
    for (int bit = 0; bit < 8; ++bit) list.push_back(maker.flip("epoch", byte, bit));
  for (Damage& damage : maker.truncations("epoch", 8)) list.push_back(std::move(damage));
  for (const char* text : {"9223372036854775807 x\n", "99999999999999999999\n", "-1\n", "\n"})
    list.push_back({text, {{"epoch", {.content = text}}}});
  int num_taken = 0;
  for (const Damage& damage : list) {
    damage.apply(save_);
    try {
      const SaveFolder claimed(save_);
      EXPECT_GT(claimed.epoch(), 0) << damage.what;
      ++num_taken;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(save_ + "/epoch")) << damage.what;
    }
    EXPECT_EQ(list_checkpoints(save_).size(), 2U) << damage.what;
    damage.undo(save_, sample_->save_files);
  }
  EXPECT_GT(num_taken, 0);
  EXPECT_LT(num_taken, std::ssize(list));
}

}  // namespace
}  // namespace phalanx::test
