// RUN/submission.json: written and read through the visitor of the options.
#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "cluster/node_failures.h"
#include "cluster/submission.h"
#include "core/run_files.h"
#include "data/file_io.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

class OptionWriter {
 public:
  void group(std::string_view) {}
  template <class Value>
  void operator()(std::string_view name, const Value& value, std::string_view) {
    if constexpr (NamedEnum<Value>)
      json[std::string(name)] = enum_name(value);
    else
      json[std::string(name)] = value;
  }
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
};

class OptionReader {
 public:
  explicit OptionReader(const nlohmann::json& json) : json_(json) {}
  void group(std::string_view) {}
  template <class Value>
  void operator()(std::string_view name, Value& value, std::string_view) {
    const auto found = json_.find(std::string(name));
    if (found == json_.end()) return;  // an option that did not exist yet keeps its default
    if constexpr (NamedEnum<Value>)
      value = parse_enum<Value>(found->template get<std::string>());
    else
      value = found->template get<Value>();
  }

 private:
  const nlohmann::json& json_;
};

}  // namespace

std::vector<std::string> excluded_by_user(const SubmitOptions& options) {
  constexpr std::string_view kExclude = "exclude=";
  std::vector<std::string> names;
  for (const std::string& word : options.sbatch_options)
    if (word.starts_with(kExclude))
      for (std::string& name : expand_node_list(word.substr(kExclude.size())))
        names.push_back(std::move(name));
  return names;
}

bool has_submission(const std::string& run_dir) {
  return std::filesystem::exists(submission_path(run_dir));
}

void write_submission(const std::string& run_dir, const SubmissionRecord& record) {
  OptionWriter options;
  visit_fields(record.options, options);
  const nlohmann::ordered_json json{{"options", options.json},
                                    {"train_arguments", record.train_arguments},
                                    {"program", record.program},
                                    {"working_folder", record.working_folder},
                                    {"launcher", enum_name(record.launcher)},
                                    {"mpi_plugin", record.mpi_plugin},
                                    {"cpus_per_rank", record.cpus_per_rank},
                                    {"overcommit", record.overcommit},
                                    {"warning_seconds", record.warning_seconds},
                                    {"jobs", record.jobs}};
  TemporaryFile file(submission_path(run_dir));
  FileWriter writer(file.path());
  const std::string text =
      json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  writer.write(text.data(), static_cast<int64_t>(text.size()));
  writer.flush();
  file.publish();
}

SubmissionRecord read_submission(const std::string& run_dir) {
  const std::string path = submission_path(run_dir);
  check_usage(has_submission(run_dir), "there is no ", path,
              ": the run was not handed in by `phalanx submit`");
  std::ifstream in(path);
  SubmissionRecord record;
  try {
    const nlohmann::json json = nlohmann::json::parse(in);
    OptionReader options(json.at("options"));
    visit_fields(record.options, options);
    json.at("train_arguments").get_to(record.train_arguments);
    json.at("program").get_to(record.program);
    json.at("working_folder").get_to(record.working_folder);
    record.launcher = parse_enum<Launcher>(json.at("launcher").get<std::string>());
    json.at("mpi_plugin").get_to(record.mpi_plugin);
    json.at("cpus_per_rank").get_to(record.cpus_per_rank);
    json.at("overcommit").get_to(record.overcommit);
    json.at("warning_seconds").get_to(record.warning_seconds);
    json.at("jobs").get_to(record.jobs);
  } catch (const std::exception& error) {
    fail(path, " is not what `phalanx submit` wrote: ", error.what(),
         "; submit the run again to replace it");
  }
  return record;
}

}  // namespace phalanx
