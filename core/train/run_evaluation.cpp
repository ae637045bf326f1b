// Evaluation of a saved model.
#include "core/train/run_evaluation.h"

#include <cmath>
#include <limits>

#include "core/train/loaded_model.h"
#include "core/train/validation_set.h"

namespace phalanx {

EvaluationResult run_evaluation(const RunConfig& config, const std::string& load_dir,
                                Backend& backend, ProcessGroups& groups, const DeviceMesh& mesh) {
  check(mesh.world_size() == groups.world->size(), "a mesh of ", mesh.world_size(),
        " ranks in a world of ", groups.world->size());
  const RunSetup setup = make_run_setup(config, groups.dp->size());
  const TrainingConfig& training = setup.config.training;
  const int64_t most_samples = ValidationSet::has_end(setup.config.data)
                                   ? std::numeric_limits<int64_t>::max()
                                   : training.eval_iters * training.global_batch_size;
  ValidationSet samples(setup.config.data, make_batch_plan(setup.config, *groups.dp, most_samples),
                        setup.vocabulary);
  LoadedModel model(setup, load_dir, backend, groups,
                    {setup.config.data.seq_length, training.micro_batch_size});
  const auto never = [] { return false; };
  const ValidationMetrics metrics = samples.evaluate(model.stage(), groups, never).value();
  return {.loss = metrics.loss, .perplexity = std::exp(metrics.loss), .tokens = metrics.tokens};
}

}  // namespace phalanx
