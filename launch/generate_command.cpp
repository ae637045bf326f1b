// `phalanx generate`: text from a finished run, printed while it is written.
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>

#include "core/model/problems.h"
#include "launch/commands.h"
#include "launch/mpi_ranks.h"
#include "launch/options.h"
#include "launch/run_device.h"

namespace phalanx {
namespace {

constexpr char kUsage[] =
    "usage: phalanx generate --load RUN --prompt TEXT [options]\n"
    "Continues the prompt with RUN's model. --seed is the seed of the draws.";

void print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void check_generation(const GenerationOptions& generation, std::vector<std::string>& problems) {
  const auto report = [&](std::string text) { problems.push_back(std::move(text)); };
  if (generation.max_new_tokens < 1)
    report(fmt::format("max-new-tokens {} is too small; the smallest value is 1",
                       generation.max_new_tokens));
  if (generation.temperature < 0)
    report(fmt::format("temperature {} is negative; the nearest is 0 (greedy)",
                       generation.temperature));
  if (generation.top_k < 0)
    report(fmt::format("top-k {} is negative; the nearest is 0 (all)", generation.top_k));
  if (!(generation.top_p > 0 && generation.top_p <= 1))
    report(fmt::format("top-p {} is not above 0 and at most 1; the nearest is 1 (all)",
                       generation.top_p));
}

/// Tokens are drawn one after the other from the whole model: one process.
void check_one_rank(const ParallelConfig& parallel, std::vector<std::string>& problems) {
  const int64_t ranks = launched_ranks([](const char* name) { return std::getenv(name); });
  if (ranks > 1)
    problems.push_back(fmt::format(
        "generate runs on one rank and was started on {}; start it without mpirun", ranks));
  const std::pair<const char*, int64_t> sizes[] = {
      {"tensor-model-parallel-size", parallel.tensor_model_parallel_size},
      {"pipeline-model-parallel-size", parallel.pipeline_model_parallel_size},
      {"context-parallel-size", parallel.context_parallel_size},
      {"expert-model-parallel-size", parallel.expert_model_parallel_size},
      {"expert-tensor-parallel-size", parallel.expert_tensor_parallel_size}};
  for (const auto& [option, size] : sizes)
    if (size != 1)
      problems.push_back(fmt::format(
          "{} {}: generate runs on one rank; leave the option out, weights load on any mesh",
          option, size));
}

}  // namespace

int run_generate(const Arguments& arguments) {
  LoadOptions load;
  GenerationOptions generation;
  RunConfig config;
  OptionTable table;
  visit_fields(load, table);
  visit_fields(generation, table);
  visit_fields(config, table);
  if (wants_help(arguments)) {
    print(help_text(kUsage, table, {"Sources", "Generation", "Training", "Tokenizer"}));
    return 0;
  }
  auto problems = apply_options(arguments, table, config);
  if (load.load.empty()) problems.push_back("load is empty: give --load RUN, a run folder");
  config.training.cuda_graph = false;  // of the training run
  check_generation(generation, problems);
  check_one_rank(config.parallel, problems);
  append(problems, validate(config.model, config.data.seq_length));
  throw_problems(problems);

  generation.seed = static_cast<uint64_t>(config.training.seed);
  const auto backend = make_run_backend(config.training, Ranks());
  print(generation.prompt);
  run_generation(config, load.load, generation, *backend, print);
  print("\n");
  return 0;
}

}  // namespace phalanx
