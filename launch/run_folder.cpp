// Finding the run folder and its configuration.
#include "launch/run_folder.h"

#include <filesystem>

#include "kernels/base/error.h"
#include "launch/option_sources.h"
#include "launch/options.h"

namespace phalanx {

std::string run_folder_argument(const std::vector<std::string>& arguments, const OptionTable& table,
                                const std::string& command) {
  std::vector<std::string> words;
  throw_problems(apply_command_line(arguments, table, words));
  check_usage(words.size() == 1, "`phalanx ", command, "` takes one run folder, not ", words.size(),
              "; e.g. phalanx ", command, " runs/first");
  std::string path = std::filesystem::absolute(words.front()).lexically_normal().string();
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

RunConfig config_of_run(const std::string& run_dir) {
  RunConfig config;
  const OptionTable table = option_table(config);
  for (const Setting& setting : read_config_file(run_dir + "/config.ini", table).settings)
    if (const Option* option = table.find(setting.name); option != nullptr) {
      try {
        option->assign(setting.values);
      } catch (const UsageError&) {
        continue;  // of another version: this subcommand needs few of them
      }
    }
  config.training.run_dir = run_dir;
  return config;
}

}  // namespace phalanx
