// `phalanx generate`: text from a finished run, printed while it is written.
#include <cstdio>

#include "launch/commands.h"
#include "launch/options.h"

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
  check_generation(generation, problems);
  for (auto& problem : validate(config.model, config.data.seq_length))
    problems.push_back(std::move(problem));
  throw_problems(problems);

  generation.seed = static_cast<uint64_t>(config.training.seed);
  const auto backend = make_backend(Device::cpu, static_cast<int>(config.training.threads));
  print(generation.prompt);
  run_generation(config, load.load, generation, *backend, print);
  print("\n");
  return 0;
}

}  // namespace phalanx
