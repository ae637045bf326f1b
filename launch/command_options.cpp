// The names of all options of all subcommands, gathered by the same visitor.
#include "launch/command_options.h"

#include "launch/options.h"

namespace phalanx {

std::vector<std::string> every_option_name() {
  RunConfig run;
  SourceOptions sources;
  InfoOptions info;
  LoadOptions load;
  GenerateOptions generate;
  PrepareOptions prepare;
  OptionTable table;
  visit_fields(run, table);
  visit_fields(sources, table);
  visit_fields(info, table);
  visit_fields(load, table);
  visit_fields(generate, table);
  visit_fields(prepare, table);
  return table.names();
}

}  // namespace phalanx
