// `phalanx checkpoint`: exit codes and texts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "data/file_io.h"
#include "launch/checkpoint_report.h"
#include "launch/commands.h"
#include "tests/checkpoint/checkpoint_fixture.h"
#include "tests/data/data_helpers.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ContainsRegex;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

struct Outcome {
  int code = 0;  // as main has it
  std::string out;
  std::string error;
};

Outcome run(const Arguments& arguments) {
  Outcome outcome;
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  try {
    outcome.code = run_checkpoint(arguments);
  } catch (const UsageError& error) {
    outcome = {.code = 2, .error = error.what()};
  } catch (const Error& error) {
    outcome = {.code = 1, .error = error.what()};
  }
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.error += testing::internal::GetCapturedStderr();
  return outcome;
}

/// A run folder with the checkpoints 100 and 200, the second with other numbers.
class CheckpointCommand : public testing::Test {
 protected:
  CheckpointCommand() {
    write_fixture(first_,
                  {.row_cuts = 2, .config_ini = "[Training]\nlr = 0.1  # default: 0\nseed = 2\n"});
    write_fixture(second_,
                  {.num_shards = 3,
                   .step = 200,
                   .seed = 2,
                   .config_ini = "[Training]\nlr = 0.2\nseed = 1\nsave = \"a b\"  # default: "
                                 "empty\n[Model]\nnum-layers = 3  # default: 12\n"});
    write_file(save_ + "/latest_checkpointed_iteration.txt", "200\n");
  }
  void spoil(const std::string& path) const {
    const SavedShard shard = read_checkpoint_manifest(path).shards.front();
    flip_bit(path + "/" + shard.file, shard.blocks.front().place[0], 0);
  }

  TemporaryFolder root_;
  std::string run_ = root_ / "run";
  std::string save_ = run_ + "/checkpoints";
  std::string first_ = save_ + "/iter_0000100";
  std::string second_ = save_ + "/iter_0000200";
};

TEST_F(CheckpointCommand, LsTellsWhatIsThere) {
  write_file(first_ + "/next_step.json", "{}");
  fs::create_directory(save_ + "/iter_0000300.writing.2");
  fs::create_directory(save_ + "/iter_0000050.damaged");
  const Outcome whole = run({"ls", run_});
  EXPECT_EQ(whole.code, 0);
  EXPECT_THAT(
      whole.out,
      ContainsRegex("iter_0000100 +complete +[0-9.]+ kB +2 +2 +100 +800 f32 +certified +tp 1"));
  EXPECT_THAT(whole.out, ContainsRegex("iter_0000200 <- latest +complete +[0-9.]+ kB +3 +3 +200"));
  EXPECT_THAT(whole.out, ContainsRegex("iter_0000300.writing.2 +incomplete"));
  EXPECT_THAT(whole.out, ContainsRegex("iter_0000050.damaged +set aside as damaged"));
  fs::remove(second_ + "/shard_00002.h5");
  const Outcome damaged = run({"ls", save_});
  EXPECT_EQ(damaged.code, 1);
  EXPECT_THAT(damaged.out, AllOf(ContainsRegex("iter_0000200 <- latest +damaged"),
                                 HasSubstr("  damaged: shard_00002.h5 is missing\n")));
}

TEST_F(CheckpointCommand, VerifyEndsWithOneWhenAnyCheckpointIsDamaged) {
  const Outcome whole = run({"verify", "--threads", "2", run_});
  EXPECT_EQ(whole.code, 0);
  EXPECT_THAT(whole.out, AllOf(HasSubstr(first_ + ": intact, 197 kB"),
                               HasSubstr(second_ + ": intact, 197 kB")));
  EXPECT_THAT(whole.error, ContainsRegex("197 kB of 197 kB, 100.0 %, [0-9.]+ GB/s"));
  spoil(first_);
  const Outcome damaged = run({"verify", save_});
  EXPECT_EQ(damaged.code, 1);
  EXPECT_THAT(damaged.out,
              AllOf(StartsWith(first_ + "/shard_00000.h5: embedding.weight, rows 0"),
                    HasSubstr(first_ + ": 1 damages"), HasSubstr(second_ + ": intact")));
  EXPECT_EQ(run({"verify", second_}).code, 0);
  write_file(save_ + "/latest_checkpointed_iteration.txt", "2OO\n");
  fs::remove_all(first_);
  const Outcome latest = run({"verify", save_});
  EXPECT_EQ(latest.code, 1);
  EXPECT_THAT(latest.error, HasSubstr("latest_checkpointed_iteration.txt holds \"2OO"));
}

TEST_F(CheckpointCommand, ShowPrintsStateAndStatisticsOrTheConfiguration) {
  const Outcome shown = run({"show", run_});
  EXPECT_EQ(shown.code, 0);
  EXPECT_THAT(shown.out,
              AllOf(HasSubstr("checkpoint         " + second_), HasSubstr("step               200"),
                    HasSubstr("parameters         16448"),
                    ContainsRegex("optimizer.exp_avg_sq/layers.00.norm.weight +\\[64\\] ")));
  EXPECT_EQ(run({"show", first_, "--config"}).out,
            "[Training]\nlr = 0.1  # default: 0\nseed = 2\n");
}

TEST_F(CheckpointCommand, DiffComparesOptionsStateAndTensors) {
  const Outcome other = run({"diff", first_, second_});
  EXPECT_EQ(other.code, 1);
  EXPECT_THAT(other.out,
              AllOf(HasSubstr("  lr: 0.1 | 0.2\n  save: - | \"a b\"\n"),
                    HasSubstr("\noptions\n  seed: 2 | 1\n  num-layers: - | 3\nstate\n"),
                    HasSubstr("  step: 100 | 200\n"),
                    ContainsRegex("embedding.weight .* of 6144\n"), HasSubstr("\ndifferent\n")));
  const std::string resharded = root_ / "resharded";
  EXPECT_EQ(run({"reshard", first_, resharded, "--shards", "3"}).code, 0);
  const Outcome same = run({"diff", first_, resharded});
  EXPECT_EQ(same.code, 0);
  EXPECT_THAT(same.out, AllOf(HasSubstr("shards: 2 | 3"), HasSubstr("12 equal in every bit"),
                              HasSubstr("\nthe same\n")));
  EXPECT_EQ(run({"verify", resharded}).code, 0);
}

TEST_F(CheckpointCommand, ExportTellsHowToCompleteTheFolder) {
  fs::create_directory(root_ / "exported");
  const std::string file = root_ / "exported/weights.h5";
  const Outcome bare = run({"export-h5", first_, file});
  EXPECT_EQ(bare.code, 0);
  EXPECT_THAT(bare.out,
              HasSubstr("show " + first_ + " --config > " + (root_ / "exported/config.ini")));
  write_file(root_ / "exported/config.ini", "");
  fs::remove(file);
  EXPECT_THAT(run({"export-h5", run_, file}).out, Not(HasSubstr("config.ini")));
}

TEST_F(CheckpointCommand, DamageIsNeverRewritten) {
  spoil(first_);
  EXPECT_EQ(run({"reshard", first_, root_ / "new", "--shards", "2"}).code, 1);
  EXPECT_EQ(run({"export-h5", first_, root_ / "new"}).code, 1);
  EXPECT_EQ(run({"show", first_}).code, 1);
  EXPECT_FALSE(fs::exists(root_ / "new"));
}

TEST_F(CheckpointCommand, WrongArgumentsAreNamedAndEndWithTwo) {
  const auto expect_usage = [](const Arguments& arguments, const std::string& text) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 2) << text;
    EXPECT_THAT(outcome.error, HasSubstr(text));
  };
  expect_usage({}, "no action given\nusage: phalanx checkpoint ACTION");
  expect_usage({"verfy", run_}, "no action is called 'verfy'; the nearest is 'verify'");
  expect_usage({"verify"}, "verify takes 1 path, not 0: phalanx checkpoint verify PATH");
  expect_usage({"diff", first_}, "diff takes 2 paths, not 1");
  expect_usage({"ls", run_, "--shards", "2"}, "--shards: no such option");
  expect_usage({"verify", run_, "--threads", "-1"}, "threads -1 is negative");
  expect_usage({"verify", run_, "--threads", "two"}, "--threads");
  expect_usage({"verify", root_ / "absent"}, "there is no folder " + (root_ / "absent"));
  expect_usage({"ls", first_ + "/../../.."}, "holds no checkpoints");
  expect_usage({"reshard", first_, root_ / "new"}, "--shards is 0");
  expect_usage({"reshard", first_, second_, "--shards", "2"}, "call it iter_0000100");
  EXPECT_EQ(run({"--help"}).code, 0);
  EXPECT_THAT(run({"verify", "--help"}).out, HasSubstr("export-h5 IN FILE"));
}

TEST(SizeText, HasThreeDigits) {
  EXPECT_EQ(size_text(0), "0 B");
  EXPECT_EQ(size_text(999), "999 B");
  EXPECT_EQ(size_text(1000), "1 kB");
  EXPECT_EQ(size_text(999'900), "1 MB");
  EXPECT_EQ(size_text(1'234'567'890), "1.23 GB");
  EXPECT_EQ(size_text(int64_t{123} << 40), "135 TB");
}

}  // namespace
}  // namespace phalanx
