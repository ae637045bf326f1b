// The study as JSON and back.
#include "cluster/study_plan.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cluster/external_command.h"
#include "data/file_io.h"

namespace phalanx {
namespace {

using Json = nlohmann::ordered_json;

Json json_of(const StudyForecast& forecast) {
  Json bytes = Json::array();
  for (const StepBytes& item : forecast.bytes) {
    Json entry{{"group", item.group}, {"operation", collective_name(item.operation)}};
    entry["bytes"] = item.bytes ? Json(*item.bytes) : Json();
    bytes.push_back(std::move(entry));
  }
  return {{"memory_bytes", forecast.memory_bytes},
          {"bubble", forecast.bubble},
          {"bytes", std::move(bytes)}};
}

Json json_of(const StudyPoint& point) {
  return {{"name", point.name},
          {"nodes", point.nodes},
          {"ranks", point.ranks},
          {"layout", point.layout},
          {"global_batch_size", point.global_batch_size},
          {"train_iters", point.train_iters},
          {"arguments", point.arguments},
          {"problems", point.problems},
          {"forecast", json_of(point.forecast)}};
}

Collective collective_of(const std::string& name) {
  for (int i = 0; i < kNumCollectives; ++i)
    if (name == collective_name(static_cast<Collective>(i))) return static_cast<Collective>(i);
  fail("no operation is called '", name, "'");
}

StudyForecast forecast_of(const Json& json) {
  StudyForecast forecast{.memory_bytes = json.at("memory_bytes"), .bubble = json.at("bubble")};
  for (const Json& item : json.at("bytes")) {
    StepBytes& entry = forecast.bytes.emplace_back(
        StepBytes{item.at("group"), collective_of(item.at("operation"))});
    if (!item.at("bytes").is_null()) entry.bytes = item.at("bytes").get<int64_t>();
  }
  return forecast;
}

StudyPoint point_of(const Json& json) {
  return {.name = json.at("name"),
          .nodes = json.at("nodes"),
          .ranks = json.at("ranks"),
          .layout = json.at("layout"),
          .global_batch_size = json.at("global_batch_size"),
          .train_iters = json.at("train_iters"),
          .arguments = json.at("arguments"),
          .problems = json.at("problems"),
          .forecast = forecast_of(json.at("forecast"))};
}

}  // namespace

std::string study_path(const std::string& folder) {
  return folder + "/study.json";
}

bool has_study(const std::string& folder) {
  return std::filesystem::exists(study_path(folder));
}

Study read_study(const std::string& folder) {
  const std::string path = study_path(folder);
  check_usage(has_study(folder), "there is no study in ", folder, " (no ", path,
              "); `phalanx study --nodes 1,2,4 --strong --study-dir ", folder,
              " -- TRAIN OPTIONS` makes one");
  try {
    std::ifstream file(path);
    const Json json = Json::parse(file);
    Study study{.folder = folder,
                .weak = json.at("scaling") == "weak",
                .nodes = json.at("nodes"),
                .layouts = json.at("layouts"),
                .ranks_per_node = json.at("ranks_per_node"),
                .train_arguments = json.at("train_arguments"),
                .command = json.at("command"),
                .version = json.at("version"),
                .host = json.at("host"),
                .created = json.at("created")};
    for (const Json& point : json.at("points")) study.points.push_back(point_of(point));
    return study;
  } catch (const nlohmann::json::exception& error) {
    fail(path, " is no study (", error.what(), "); move it away to begin the study anew");
  }
}

void write_study(const Study& study) {
  Json points = Json::array();
  for (const StudyPoint& point : study.points) points.push_back(json_of(point));
  const Json json{{"scaling", study.weak ? "weak" : "strong"},
                  {"nodes", study.nodes},
                  {"layouts", study.layouts},
                  {"ranks_per_node", study.ranks_per_node},
                  {"train_arguments", study.train_arguments},
                  {"command", study.command},
                  {"version", study.version},
                  {"host", study.host},
                  {"created", study.created},
                  {"points", std::move(points)}};
  std::filesystem::create_directories(study.folder);
  replace_file(study_path(study.folder), json.dump(1) + "\n");
}

void replace_file(const std::string& path, const std::string& text) {
  TemporaryFile file(path);
  FileWriter writer(file.path());
  writer.write(text.data(), static_cast<int64_t>(text.size()));
  writer.flush();
  file.publish();
}

Study continued_study(const Study& asked) {
  Study before = read_study(asked.folder);
  std::string differs;
  if (before.weak != asked.weak) differs = before.weak ? "--weak" : "--strong";
  if (before.nodes != asked.nodes) differs = "--nodes " + before.nodes;
  if (before.layouts != asked.layouts) differs = "--layouts '" + before.layouts + "'";
  if (before.ranks_per_node != asked.ranks_per_node)
    differs = fmt::format("--ranks-per-node {}", before.ranks_per_node);
  if (before.train_arguments != asked.train_arguments)
    differs = "train options " + command_text(before.train_arguments);
  check_usage(differs.empty(), asked.folder, " has another study, with ", differs,
              ": give the options it was made with to go on with it, or another --study-dir");
  return before;
}

}  // namespace phalanx
