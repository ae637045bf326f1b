// Applying the options of train without starting it.
#include "launch/prepared_run.h"

#include <algorithm>
#include <filesystem>

#include "kernels/base/error.h"
#include "launch/options.h"
#include "launch/stop_signals.h"

namespace phalanx {

std::pair<std::vector<std::string>, std::vector<std::string>> split_at_dashes(
    const std::vector<std::string>& arguments) {
  const auto dashes = std::ranges::find(arguments, "--");
  std::pair<std::vector<std::string>, std::vector<std::string>> parts;
  parts.first.assign(arguments.begin(), dashes);
  if (dashes != arguments.end()) parts.second.assign(dashes + 1, arguments.end());
  return parts;
}

PreparedRun prepare_run(const std::vector<std::string>& train_arguments) {
  PreparedRun run{.train_arguments = train_arguments};
  SourceOptions sources;
  TrainOptions train;
  OptionTable table;
  visit_fields(sources, table);
  visit_fields(train, table);
  visit_fields(run.config, table);
  throw_problems(apply_options(train_arguments, table, run.config));
  check_usage(!train.verify_layout,
              "verify-layout checks a layout and trains nothing; start it by "
              "itself, e.g. with srun");
  std::string& run_dir = run.config.training.run_dir;
  check_usage(!run_dir.empty(),
              "--run-dir is missing behind --: name the folder of the run, e.g. `phalanx submit "
              "--nodes 2 -- --run-dir runs/first ...`");
  run_dir = std::filesystem::absolute(run_dir).lexically_normal().string();
  while (run_dir.size() > 1 && run_dir.back() == '/') run_dir.pop_back();
  run.program = std::filesystem::read_symlink("/proc/self/exe").string();
  return run;
}

}  // namespace phalanx
