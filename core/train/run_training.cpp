// The whole run in the order it happens.
#include "core/train/run_training.h"

#include <fmt/format.h>

#include <cstdio>

#include "core/train/trainer.h"

namespace phalanx {

TrainingResult run_training(const RunConfig& config, const std::string& config_ini,
                            Backend& backend, ProcessGroups& groups, const DeviceMesh& mesh) {
  Trainer trainer(config, backend, groups);
  const std::string description = trainer.describe(mesh);
  if (groups.world->rank() == 0) {
    fmt::print("{}\n{}\n", config_ini, description);
    std::fflush(stdout);
  }
  return trainer.run(config_ini);
}

}  // namespace phalanx
