// The names of all options of all subcommands, gathered by the same visitor.
#include "launch/command_options.h"

#include "cluster/study_options.h"
#include "cluster/submit_options.h"
#include "data/prepare.h"
#include "launch/options.h"

namespace phalanx {
namespace {

template <class... Configs>
std::vector<std::string> names_of(Configs... configs) {
  OptionTable table;
  (visit_fields(configs, table), ...);
  return table.names();
}

}  // namespace

std::vector<std::string> every_option_name() {
  return names_of(RunConfig(), SourceOptions(), TrainOptions(), LoadOptions(), InfoOptions(),
                  GenerationOptions(), PrepareConfig(), TokenizerTraining(), SubmitOptions(),
                  StudyOptions());
}

}  // namespace phalanx
