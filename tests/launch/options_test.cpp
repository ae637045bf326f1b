// Options: precedence of sources, all problems at once with the nearest valid value, and the config
// file that reads back to the identical configuration.
#include "launch/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "launch/command_options.h"
#include "launch/option_sources.h"

namespace phalanx {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Words = std::vector<std::string>;

/// An environment variable for the length of a test.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~ScopedVariable() { unsetenv(name_); }
  ScopedVariable(const ScopedVariable&) = delete;
  ScopedVariable& operator=(const ScopedVariable&) = delete;

 private:
  const char* name_;
};

/// A run's options as `train` sees them, filled from the given sources.
struct GivenRun {
  SourceOptions sources;
  RunConfig config;
  Words problems;

  explicit GivenRun(const Words& arguments) {
    OptionTable table;
    visit_fields(sources, table);
    visit_fields(config, table);
    problems = apply_options(arguments, table, config);
  }
};

std::string write_file(const std::string& name, const std::string& text) {
  const std::string path = ::testing::TempDir() + name;
  std::ofstream(path) << text;
  return path;
}

TEST(CommandLine, SetsEveryKindOfField) {
  const GivenRun run({"--num-layers", "7", "--lr=0.25", "--no-overlap-grad-reduce", "--phd", "swa",
                      "--data-path", "0.3", "a b", "0.7", "c", "--mock-data", "--split=1,0,0"});
  EXPECT_THAT(run.problems, IsEmpty());
  EXPECT_EQ(run.config.model.num_layers, 7);
  EXPECT_EQ(run.config.optimizer.lr, 0.25);
  EXPECT_FALSE(run.config.parallel.overlap_grad_reduce);
  EXPECT_TRUE(run.config.data.mock_data);
  EXPECT_EQ(run.config.model.phd, PhdMode::swa);
  EXPECT_THAT(run.config.data.data_path, ElementsAre("0.3", "a b", "0.7", "c"));
  EXPECT_EQ(run.config.data.split, "1,0,0");
}

TEST(CommandLine, Bf16IsShortForPrecision) {
  EXPECT_EQ(GivenRun({"--bf16"}).config.training.precision, ComputePrecision::bf16);
}

TEST(CommandLine, LastValueWins) {
  EXPECT_EQ(GivenRun({"--seed", "3", "--seed", "4"}).config.training.seed, 4);
  EXPECT_FALSE(GivenRun({"--mock-data", "--no-mock-data"}).config.data.mock_data);
}

TEST(Precedence, CommandLineThenFileThenEnvironmentThenPresetThenDefault) {
  const ScopedVariable layers("PHALANX_NUM_LAYERS", "21");
  const ScopedVariable heads("PHALANX_NUM_ATTENTION_HEADS", "22");
  const ScopedVariable hidden("PHALANX_HIDDEN_SIZE", "23");
  const std::string file = write_file("order.ini", "num-layers = 11\nhidden-size = 12 # wide\n");
  const GivenRun run({"--model", "phd-550m", "--config", file, "--num-layers", "1"});
  EXPECT_THAT(run.problems, IsEmpty());
  EXPECT_EQ(run.config.model.num_layers, 1);
  EXPECT_EQ(run.config.model.hidden_size, 12);
  EXPECT_EQ(run.config.model.num_attention_heads, 22);
  EXPECT_EQ(run.config.model.ffn_hidden_size, 4096);
  EXPECT_EQ(run.config.training.micro_batch_size, RunConfig().training.micro_batch_size);
  EXPECT_EQ(run.config.data.seq_length, 4096);
}

TEST(Environment, FaultsOnPurposeAreNoOptions) {
  const ScopedVariable fault("PHALANX_FAULT", "kill:step:1");
  const ScopedVariable seconds("PHALANX_FAULT_SECONDS", "5");
  const ScopedVariable unknown("PHALANX_FAILS", "1");
  EXPECT_THAT(GivenRun({}).problems, ElementsAre(HasSubstr("PHALANX_FAILS")));
}

TEST(Precedence, ModelAndConfigMayComeFromAnySource) {
  const std::string file = write_file("model.ini", "[Sources]\nmodel = phd-151m\n");
  const ScopedVariable config("PHALANX_CONFIG", file.c_str());
  EXPECT_EQ(GivenRun(Words{}).config.model.hidden_size, 768);
}

TEST(Precedence, ALoadedRunGivesEverythingButItsLayout) {
  const std::string folder = ::testing::TempDir();
  write_file("config.ini", "num-layers = 7\ntensor-model-parallel-size = 4\nrecompute = layer\n");
  const auto loaded = [&](Words arguments) {
    LoadOptions load;
    RunConfig config;
    OptionTable table;
    visit_fields(load, table);
    visit_fields(config, table);
    arguments.insert(arguments.begin(), {"--load", folder});
    EXPECT_THAT(apply_options(arguments, table, config), IsEmpty());
    EXPECT_EQ(config.model.num_layers, 7);
    return config.parallel;
  };
  EXPECT_EQ(loaded({}).tensor_model_parallel_size, 1);
  EXPECT_THAT(loaded({}).recompute, IsEmpty());
  EXPECT_EQ(loaded({"--tensor-model-parallel-size", "2"}).tensor_model_parallel_size, 2);
}

TEST(TrainOptions, VerifyLayoutIsASwitchAndNoPartOfTheConfiguration) {
  TrainOptions train;
  RunConfig config;
  OptionTable table;
  visit_fields(train, table);
  visit_fields(config, table);
  EXPECT_THAT(apply_options({"--verify-layout"}, table, config), IsEmpty());
  EXPECT_TRUE(train.verify_layout);
  EXPECT_EQ(config_ini(config).find("verify-layout"), std::string::npos);
}

TEST(Problems, AllAtOnceEachWithOptionValueAndNearest) {
  const ScopedVariable variable("PHALANX_NUM_LAYER", "2");
  const std::string file = write_file("bad.ini", "hiden-size = 4\nno equals sign\nlr = fast\n");
  const GivenRun run({"--num-layer", "3", "--phd", "cwsa", "--seed", "1.6", "--config", file,
                      "--mock-data=maybe", "--model", "phd-1b"});
  EXPECT_THAT(run.problems,
              ::testing::UnorderedElementsAre(
                  HasSubstr("--num-layer: no such option; the nearest is --num-layers"),
                  HasSubstr("--phd: 'cwsa' is none of naive|phd|swa|cswa; the nearest is"),
                  HasSubstr("--seed: '1.6' is no 64-bit whole number; the nearest is 2"),
                  HasSubstr("--mock-data: 'maybe' is neither true nor false"),
                  HasSubstr("no model is called 'phd-1b'; the nearest is phd-1.2b"),
                  HasSubstr("PHALANX_NUM_LAYER: no such option; the nearest is num-layers"),
                  HasSubstr("bad.ini:1: hiden-size: no such option; the nearest is hidden-size"),
                  HasSubstr("bad.ini:2: 'no equals sign' is not name = value"),
                  HasSubstr("bad.ini:3: lr: 'fast' is no finite number")));
}

TEST(Problems, MissingValuesAndStrayWords) {
  EXPECT_THAT(GivenRun({"--lr", "--seed", "3"}).problems, ElementsAre("--lr: a value must follow"));
  EXPECT_THAT(GivenRun({"--seed"}).problems, ElementsAre("--seed: a value must follow"));
  EXPECT_THAT(GivenRun({"fast", "--seed", "3"}).problems,
              ElementsAre(HasSubstr("'fast' belongs to no")));
  EXPECT_THAT(GivenRun({"--no-mock-data=3"}).problems, ElementsAre(HasSubstr("--no-mock-data=3")));
  EXPECT_THAT(GivenRun({"--seed", "99999999999999999999"}).problems,
              ElementsAre(HasSubstr("the nearest is 9223372036854775807")));
  EXPECT_THAT(GivenRun({"--config", "/nowhere/x.ini"}).problems,
              ElementsAre(HasSubstr("/nowhere/x.ini is no file")));
}

TEST(Problems, ThrownTogetherAsUsageError) {
  EXPECT_NO_THROW(throw_problems({}));
  EXPECT_THROW(throw_problems({"a", "b"}), UsageError);
}

TEST(Sources, FilesMayHoldOptionsOfOtherSubcommands) {
  EXPECT_THAT(
      GivenRun({"--config", write_file("other.ini", "prompt = Hello\nnum-layers=2\n")}).problems,
      IsEmpty());
}

/// Sets every field to something that is not its default, without naming any.
class Scramble {
 public:
  void group(std::string_view) {}
  void operator()(std::string_view, int64_t& field, std::string_view) { field += 1 + count_++; }
  void operator()(std::string_view, double& field, std::string_view) {
    field = (field + 0.1) / (3.0 + static_cast<double>(count_++));
  }
  void operator()(std::string_view, bool& field, std::string_view) { field = !field; }
  void operator()(std::string_view name, std::string& field, std::string_view) {
    field = " #" + std::string(name) + "\\n = \"quoted\"\n\t; ü";
  }
  void operator()(std::string_view name, Words& field, std::string_view) {
    field = {std::string(name), "", "two words", "\"", "#", "a\\b"};
  }
  template <NamedEnum Enum>
  void operator()(std::string_view, Enum& field, std::string_view) {
    for (const auto& [value, name] : EnumNames<Enum>::table) {
      if (value == field) continue;
      field = value;
      return;
    }
  }

 private:
  int64_t count_ = 0;
};

// Texts of all fields; value_text is exact, so equal texts are equal values.
Words texts(RunConfig& config) {
  Words result;
  const OptionTable table = option_table(config);
  for (const auto& option : table.options()) result.push_back(option.name + "=" + option.text());
  return result;
}

TEST(ConfigFile, ReadsBackTheIdenticalConfiguration) {
  RunConfig written;
  Scramble scramble;
  visit_fields(written, scramble);
  RunConfig defaults;
  const Words changed = texts(written);
  const Words standard = texts(defaults);
  for (size_t i = 0; i < changed.size(); ++i) EXPECT_NE(changed[i], standard[i]);

  GivenRun run({"--config", write_file("round_trip.ini", config_ini(written))});
  EXPECT_THAT(run.problems, IsEmpty());
  EXPECT_EQ(texts(run.config), changed);
  EXPECT_EQ(run.config.training.run_dir, written.training.run_dir);
  EXPECT_EQ(run.config.data.data_path, written.data.data_path);
  EXPECT_EQ(run.config.optimizer.lr, written.optimizer.lr);
}

TEST(ConfigFile, DefaultsReadBackToo) {
  RunConfig defaults;
  GivenRun run({"--model", "phd-151m", "--config", write_file("plain.ini", config_ini(defaults))});
  EXPECT_THAT(run.problems, IsEmpty());
  EXPECT_EQ(texts(run.config), texts(defaults));
}

TEST(ConfigFile, SecondValueOfANameIsAProblem) {
  RunConfig config;
  const auto result = read_config_text("seed = 1\nseed = 2\n", "x.ini", option_table(config));
  EXPECT_THAT(result.problems, ElementsAre(HasSubstr("x.ini:2: seed: given a second time")));
}

TEST(ConfigFile, SaysTheDefaultOnlyWhereAValueDiffers) {
  RunConfig config;
  config.model.num_layers = 9;
  const std::string text = config_ini(config);
  EXPECT_THAT(text, HasSubstr("\nnum-layers = 9  # default: 4\n"));
  EXPECT_THAT(text, HasSubstr("\nhidden-size = 128\n"));
  EXPECT_THAT(text, HasSubstr("\n[PHD-Transformer]\n"));
}

TEST(Help, ShowsGroupsAndDefaults) {
  RunConfig config;
  const std::string text = help_text("usage: x", option_table(config), {"Optimizer"});
  EXPECT_THAT(text, HasSubstr("--lr X"));
  EXPECT_THAT(text, HasSubstr("[0.0003]"));
  EXPECT_THAT(text, HasSubstr("--[no-]decay-norm-and-bias"));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("--num-layers")));
}

TEST(EveryOptionName, IsUniqueWithinTheRun) {
  RunConfig config;
  Words names = option_table(config).names();
  std::ranges::sort(names);
  EXPECT_EQ(std::ranges::adjacent_find(names), names.end());
}

}  // namespace
}  // namespace phalanx
