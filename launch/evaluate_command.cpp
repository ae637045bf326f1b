// `phalanx evaluate`: loss and perplexity of a finished run on held-out data.
#include <cstdio>

#include "core/layout_validate.h"
#include "core/model/problems.h"
#include "core/train/run_evaluation.h"
#include "launch/commands.h"
#include "launch/mpi_ranks.h"
#include "launch/options.h"
#include "launch/run_device.h"

namespace phalanx {
namespace {

constexpr char kUsage[] =
    "usage: [mpirun -n N] phalanx evaluate --load RUN [options]\n"
    "Loss and perplexity of RUN's weights on the validation split of its data, or of other data.\n"
    "The ranks are data-parallel unless options say how to share the model: the layout RUN was\n"
    "trained in plays no part.";

struct EvaluateTable {
  LoadOptions load;
  RunConfig config;
  OptionTable table;

  EvaluateTable() {
    visit_fields(load, table);
    visit_fields(config, table);
  }
};

int evaluate_on_ranks(const Arguments& arguments, const Ranks& ranks) {
  EvaluateTable options;
  RunConfig& config = options.config;
  auto problems = apply_options(arguments, options.table, config);
  config.training.cuda_graph = false;  // of the training run
  if (options.load.load.empty()) problems.push_back("load is empty: give --load RUN, a run folder");
  append(problems, validate(config.model, config.data.seq_length));
  append(problems, validate(config.parallel, ranks.size));
  append(problems, validate_layout(config, ranks.size));
  if (report_problems(problems, ranks)) return 2;

  const auto backend = make_run_backend(config.training, ranks);
  const DeviceMesh mesh(config.parallel, ranks.size);
  ProcessGroups groups = make_device_process_groups(mesh, *backend, config.parallel.comm);
  const EvaluationResult result = run_evaluation(config, options.load.load, *backend, groups, mesh);
  if (ranks.rank == 0)
    std::printf("validation loss %.6f | perplexity %.4f | tokens %lld\n", result.loss,
                result.perplexity, static_cast<long long>(result.tokens));
  return 0;
}

}  // namespace

int run_evaluate(const Arguments& arguments) {
  if (wants_help(arguments)) {
    const auto text = help_text(
        kUsage, EvaluateTable().table,
        {"Sources", "Data", "Tokenizer", "Parallelism", "Training", "Evaluation and logs"});
    std::fputs(text.c_str(), stdout);
    return 0;
  }
  return run_on_ranks([&](const Ranks& ranks) { return evaluate_on_ranks(arguments, ranks); });
}

}  // namespace phalanx
