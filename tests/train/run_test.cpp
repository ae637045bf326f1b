// Whole runs: train, evaluate, generate; and the parts that plan them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "core/train/memory_options.h"
#include "core/train/peak_flops.h"
#include "core/train/run_evaluation.h"
#include "core/train/run_generation.h"
#include "core/train/run_training.h"
#include "core/train/stop_flag.h"
#include "core/train/trainer.h"
#include "kernels/cpu/cpu_backend.h"
#include "parallel/thread_process_group.h"
#include "tests/train/tiny_run.h"

namespace phalanx {
namespace {

/// A run of ten steps that the tests below share.
struct FinishedRun {
  FinishedRun() {
    config.training.run_dir = fresh_folder("finished");
    config.training.eval_interval = 4;
    ProcessGroups groups = make_single_process_groups();
    CpuBackend backend(1);
    const DeviceMesh mesh(config.parallel, 1);
    result = run_training(config, "seed = 1234\n", backend, groups, mesh);
  }
  static const FinishedRun& get() {
    static const FinishedRun run;
    return run;
  }
  RunConfig config = tiny_run();
  TrainingResult result;
};

EvaluationResult evaluate_on(const RunConfig& config, int num_ranks) {
  EvaluationResult first{};
  run_thread_ranks(num_ranks, [&](ThreadRank& rank) {
    const DeviceMesh mesh(config.parallel, rank.size());
    ProcessGroups groups = rank.process_groups(mesh);
    CpuBackend backend(1);
    const auto result = run_evaluation(config, config.training.run_dir, backend, groups, mesh);
    if (rank.rank() == 0) first = result;
  });
  return first;
}

std::string text_of(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

TEST(RunTraining, WritesARunFolder) {
  const FinishedRun& run = FinishedRun::get();
  const std::string& folder = run.config.training.run_dir;
  EXPECT_EQ(run.result.steps, 10);
  EXPECT_EQ(text_of(folder + "/config.ini"), "seed = 1234\n");
  EXPECT_TRUE(std::filesystem::exists(folder + "/weights.h5"));
  EXPECT_FALSE(std::filesystem::is_empty(folder + "/tensorboard"));
  std::ifstream records(folder + "/metrics.jsonl");
  std::vector<double> losses;
  std::vector<int64_t> evaluated_at;
  for (std::string line; std::getline(records, line);) {
    const auto record = nlohmann::json::parse(line);
    if (record.contains("lm_loss")) losses.push_back(record["lm_loss"]);
    if (record.contains("validation_loss")) evaluated_at.push_back(record["iteration"]);
  }
  ASSERT_EQ(losses.size(), 10U);
  EXPECT_EQ(losses.back(), run.result.final_loss);
  EXPECT_LT(losses.back(), 0.9 * losses.front());
  EXPECT_THAT(evaluated_at, testing::ElementsAre(4, 8, 10));
}

TEST(RunEvaluation, RepeatsTheLossOfTheRunOnAnyNumberOfRanks) {
  const FinishedRun& run = FinishedRun::get();
  // Sixteen samples; on 3 ranks the last batch is filled up with samples that must not count.
  const EvaluationResult one = evaluate_on(run.config, 1);
  EXPECT_EQ(one.loss, run.result.validation_loss);
  EXPECT_EQ(one.tokens, 16 * 16);
  EXPECT_DOUBLE_EQ(one.perplexity, std::exp(one.loss));
  const double terms = static_cast<double>(one.tokens * run.config.model.padded_vocab_size());
  const double tolerance = 4 * dtype_epsilon(DType::f32) * std::sqrt(terms) * one.loss;
  for (const int ranks : {2, 3}) {
    const EvaluationResult several = evaluate_on(run.config, ranks);
    EXPECT_EQ(several.tokens, one.tokens);
    EXPECT_NEAR(several.loss, one.loss, tolerance);
  }
}

TEST(RunEvaluation, LoadsWeightsOnAnyMesh) {
  const FinishedRun& run = FinishedRun::get();
  const auto check = [&](const char* name, auto change) {
    RunConfig config = run.config;
    change(config.parallel);
    const EvaluationResult several = evaluate_on(config, 4);
    EXPECT_EQ(several.tokens, 16 * 16) << name;
    const double terms = static_cast<double>(several.tokens * run.config.model.padded_vocab_size());
    EXPECT_NEAR(several.loss, run.result.validation_loss,
                4 * dtype_epsilon(DType::f32) * std::sqrt(terms) * several.loss)
        << name;
  };
  check("tp2 pp2", [](ParallelConfig& p) {
    p.tensor_model_parallel_size = p.pipeline_model_parallel_size = 2;
  });
  check("pp2, the layers on one stage", [](ParallelConfig& p) {
    p.pipeline_model_parallel_size = 2;
    p.pipeline_layout = "0,2";
  });
  check("virtual stages", [](ParallelConfig& p) {
    p.pipeline_model_parallel_size = 2;
    p.num_virtual_stages_per_pipeline_rank = 2;
    p.pipeline_layout = "1,0,1,0";
  });
  check("tp2 sequence parallel", [](ParallelConfig& p) {
    p.tensor_model_parallel_size = 2;
    p.sequence_parallel = true;
  });
}

std::string generate(const GenerationOptions& options,
                     const std::function<void(std::string_view)>& sink = {}) {
  const FinishedRun& run = FinishedRun::get();
  CpuBackend backend(1);
  return run_generation(run.config, run.config.training.run_dir, options, backend, sink);
}

TEST(RunEvaluation, RefusesWeightsOfAnotherConfiguration) {
  const FinishedRun& run = FinishedRun::get();
  RunConfig config = run.config;
  config.training.run_dir = fresh_folder("changed");
  std::filesystem::copy(run.config.training.run_dir, config.training.run_dir,
                        std::filesystem::copy_options::recursive);
  EXPECT_NO_THROW(evaluate_on(config, 1));
  std::ofstream(config.training.run_dir + "/config.ini") << "seed = 1234\nphd-copies = 1\n";
  EXPECT_THROW(evaluate_on(config, 1), UsageError);
}

TEST(RunGeneration, StreamsWhatItReturns) {
  std::string streamed;
  const std::string text = generate({.prompt = "ab", .max_new_tokens = 6, .seed = 3},
                                    [&](std::string_view piece) { streamed += piece; });
  EXPECT_EQ(streamed, text);
}

TEST(RunGeneration, GreedyIsRepeatableAndSeedsMatterOtherwise) {
  const GenerationOptions greedy{.prompt = "abc", .max_new_tokens = 5, .temperature = 0};
  EXPECT_EQ(generate(greedy), generate(greedy));
  std::set<std::string> texts;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    const GenerationOptions drawn{.prompt = "abc", .max_new_tokens = 8, .seed = seed};
    const std::string text = generate(drawn);
    EXPECT_EQ(generate(drawn), text);
    texts.insert(text);
  }
  EXPECT_GT(texts.size(), 1U);
}

TEST(RunGeneration, APrefixOfAGreedyTextDoesNotDependOnTheWindow) {
  // Room for 1 or 13 new tokens gives windows of 8 and 16 positions.
  const std::string one = generate({.prompt = "abc", .max_new_tokens = 1, .temperature = 0});
  const std::string many = generate({.prompt = "abc", .max_new_tokens = 13, .temperature = 0});
  EXPECT_EQ(many.substr(0, one.size()), one);
}

TEST(RunGeneration, ALongPromptSlidesThroughTheWindow) {
  EXPECT_NO_THROW(generate({.prompt = std::string(50, 'x'), .max_new_tokens = 20}));
}

TEST(RunGeneration, AnEmptyPromptStartsADocument) {
  EXPECT_NO_THROW(generate({.max_new_tokens = 2}));
}

TEST(RunTraining, AStopBeforeTheFirstStepTakesNone) {
  RunConfig config = tiny_run();
  config.training.run_dir = fresh_folder("stopped");
  ProcessGroups groups = make_single_process_groups();
  CpuBackend backend(1);
  const DeviceMesh mesh(config.parallel, 1);
  stop_requested() = true;
  const TrainingResult result = run_training(config, "", backend, groups, mesh);
  stop_requested() = false;
  EXPECT_EQ(result.steps, 0);
  EXPECT_EQ(result.stopped, StopReason::signal);
  EXPECT_TRUE(std::isnan(result.validation_loss));
  EXPECT_TRUE(std::filesystem::exists(config.training.run_dir + "/weights.h5"));
}

TEST(RunTraining, UsageErrorsComeBeforeFiles) {
  ProcessGroups groups = make_single_process_groups();
  CpuBackend backend(1);
  const DeviceMesh mesh(ParallelConfig{}, 1);
  const auto run = [&](const RunConfig& config) {
    run_training(config, "", backend, groups, mesh);
  };
  RunConfig no_folder = tiny_run();
  EXPECT_THROW(run(no_folder), UsageError);
  RunConfig no_steps = tiny_run();
  no_steps.training.run_dir = fresh_folder("no_steps") + "/run";
  no_steps.training.train_iters = 0;
  EXPECT_THROW(run(no_steps), UsageError);
  EXPECT_FALSE(std::filesystem::exists(no_steps.training.run_dir));
  RunConfig small_vocabulary = tiny_run();
  small_vocabulary.training.run_dir = fresh_folder("vocabulary") + "/run";
  small_vocabulary.model.vocab_size = 100;
  EXPECT_THROW(run(small_vocabulary), UsageError);
}

TEST(RunTraining, TrainSamplesGiveWholeSteps) {
  RunConfig config = tiny_run();
  config.training.train_iters = 0;
  config.training.train_samples = 31;
  EXPECT_EQ(make_run_setup(config, 1).config.training.train_iters, 3);
}

TEST(MemoryNeeds, TheOptimizerIsSharedByTheRanks) {
  RunConfig config = tiny_run();
  const auto needs_on = [&](int num_ranks, DType dtype) {
    std::vector<MemoryNeeds> all(static_cast<size_t>(num_ranks));
    run_thread_ranks(num_ranks, [&](ThreadRank& rank) {
      const DeviceMesh mesh(config.parallel, rank.size());
      ProcessGroups groups = rank.process_groups(mesh);
      CpuBackend backend(1);
      ParameterStore store;
      PhdStage stage(config.model, store, backend, groups);
      const ParallelConfig parallel{.ddp_bucket_size = 1000};
      all[static_cast<size_t>(rank.rank())] =
          memory_needs(stage, {store, groups, parallel, {16, 1}, dtype, true, {.per_chunk = {2}}});
    });
    return all;
  };
  const auto one = needs_on(1, DType::f32);
  const auto two = needs_on(2, DType::f32);
  EXPECT_EQ(one[0].optimizer, 2 * one[0].weights);
  EXPECT_EQ(two[0].optimizer + two[1].optimizer, one[0].optimizer);
  EXPECT_GT(one[0].activations, 0);
  EXPECT_EQ(one[0].snapshot, one[0].optimizer + one[0].weights);  // masters and moments
  EXPECT_EQ(two[0].snapshot + two[1].snapshot, one[0].snapshot);
  const auto half = needs_on(1, DType::bf16);
  EXPECT_EQ(2 * half[0].weights, one[0].weights);
  EXPECT_EQ(half[0].optimizer, one[0].weights * 3);
  EXPECT_THAT(memory_table(one[0]), testing::HasSubstr("total"));
}

TEST(MemoryNeeds, ReadsWhatTheMachineHas) {
  EXPECT_EQ(parse_available_memory("MemTotal: 10 kB\nMemAvailable:    2048 kB\n"), 2048 * 1024);
  EXPECT_EQ(parse_available_memory("MemTotal: 10 kB\n"), -1);
}

/// The text of a refusal with `advice`; empty if there is none.
std::string refusal(const MemoryNeeds& needs, const DeviceInfo& device) {
  const ProcessGroups groups = make_single_process_groups();
  try {
    check_memory(needs, device, *groups.world, [](const MemoryRoom& room) {
      return std::to_string(room.device) + " bytes of room";
    });
  } catch (const UsageError& error) {
    return error.what();
  }
  return {};
}

TEST(MemoryCheck, TooMuchForTheMachineIsRefused) {
  EXPECT_THAT(
      refusal({.activations = int64_t{1} << 50}, {}),
      testing::AllOf(testing::HasSubstr("1073741824 MiB needed"),
                     testing::HasSubstr("bytes of room"), testing::HasSubstr("activations")));
  EXPECT_EQ(refusal({.activations = 1}, {}), "");
}

TEST(MemoryCheck, TheGpuHasItsOwnMemory) {
  const DeviceInfo gpu{.name = "GPU", .memory_key = "0", .free_bytes = 1 << 30};
  MemoryNeeds needs{.weights = 1 << 30, .snapshot = 1 << 20, .device = Device::cuda};
  EXPECT_EQ(refusal(needs, gpu), "");
  needs.scratch = 1;
  EXPECT_THAT(refusal(needs, gpu), testing::AllOf(testing::HasSubstr("one GPU lack 1 MiB"),
                                                  testing::HasSubstr("1073741824 bytes of room")));
  needs.scratch = 0;
  needs.snapshot = int64_t{1} << 50;  // on the host
  EXPECT_THAT(refusal(needs, gpu), testing::HasSubstr("one machine lack"));
}

/// A run of `sequences` at once, and the memory it needs on the GPU.
RunConfig wide_run(int64_t sequences) {
  RunConfig config = tiny_run();
  config.model.vocab_size = 257;
  config.training.run_dir = "run";
  config.training.micro_batch_size = sequences;
  config.training.global_batch_size = sequences;
  return config;
}

TEST(MemoryOptions, EachOptionThatIsNamedFits) {
  const RunConfig config = wide_run(16);
  const int64_t needed = measure_memory(config, 1, Device::cuda).first.on_device();
  RunConfig half = config;
  half.training.micro_batch_size = 8;
  const int64_t room = measure_memory(half, 1, Device::cuda).first.on_device();
  ASSERT_LT(room, needed);
  const std::string text =
      options_that_fit(config, 1, Device::cuda, {.device = room, .host = int64_t{1} << 40});
  EXPECT_THAT(text, testing::HasSubstr("--micro-batch-size 8"));
  EXPECT_THAT(text, testing::Not(testing::HasSubstr("--micro-batch-size 4")));  // the nearest
  EXPECT_THAT(text, testing::Not(testing::HasSubstr("recompute attention")));   // saves too little
}

TEST(MemoryOptions, SeveralTogetherOrMoreRanksWhereOneIsNotEnough) {
  const RunConfig config = wide_run(16);
  RunConfig both = config;
  both.training.micro_batch_size = 1;
  both.parallel.recompute = {"layer"};
  const MemoryNeeds needs = measure_memory(both, 1, Device::cuda).first;
  const int64_t room = needs.on_device();
  const MemoryRoom narrow{.device = room, .host = int64_t{1} << 40};
  EXPECT_THAT(options_that_fit(config, 1, Device::cuda, narrow),
              testing::HasSubstr("--recompute layer --micro-batch-size 1 ("));
  const int64_t fixed = needs.workspace + needs.driver;
  const MemoryRoom sharded{.device = fixed + (room - fixed) * 3 / 5, .host = int64_t{1} << 40};
  EXPECT_THAT(options_that_fit(config, 1, Device::cuda, sharded),
              testing::HasSubstr(" ranks with "));
  EXPECT_THAT(options_that_fit(config, 1, Device::cuda, {.device = 1000, .host = 1000}),
              testing::HasSubstr("smaller model"));
}

TEST(PeakFlops, IsPositiveAndFinite) {
  CpuBackend backend(1);
  const double peak = measure_peak_flops(backend, DType::f32);
  EXPECT_GT(peak, 1e8);
  EXPECT_LT(peak, 1e15);
}

}  // namespace
}  // namespace phalanx
