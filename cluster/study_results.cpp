// Records to numbers.
#include "cluster/study_results.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "core/run_files.h"
#include "core/train/ledger.h"

namespace phalanx {
namespace {

using Json = nlohmann::json;

std::optional<double> number(const Json& record, const char* key) {
  const auto found = record.find(key);
  if (found == record.end() || !found->is_number()) return std::nullopt;
  return found->get<double>();
}
std::optional<int64_t> whole_number(const Json& record, const char* key) {
  const auto value = number(record, key);
  return value ? std::optional<int64_t>(std::llround(*value)) : std::nullopt;
}
std::string text(const Json& record, const char* key) {
  const auto found = record.find(key);
  return found != record.end() && found->is_string() ? found->get<std::string>() : "";
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

/// The step records of the newest start, without its first steps.
std::vector<Json> measured_steps(const std::vector<Json>& records) {
  std::vector<Json> steps;
  for (const Json& record : records) {
    if (text(record, "event") == "run") steps.clear();
    if (record.contains("tokens_per_second") && record.contains("iteration"))
      steps.push_back(record);
  }
  const auto warmup = std::min<int64_t>(kWarmupSteps, std::ssize(steps));
  steps.erase(steps.begin(), steps.begin() + warmup);
  return steps;
}

/// The mean of a number inside `outer` (or of the record's own), absent if a step lacks it.
std::optional<double> mean_of(const std::vector<Json>& steps, const char* outer, const char* key) {
  std::vector<double> values;
  for (const Json& step : steps) {
    const Json& place = outer == nullptr || !step.contains(outer) ? step : step.at(outer);
    const auto value = number(place, key);
    if (!value) return std::nullopt;
    values.push_back(*value);
  }
  return values.empty() ? std::nullopt : std::optional<double>(mean(values));
}

std::map<std::string, double> mean_waits(const std::vector<Json>& steps) {
  std::map<std::string, double> waits;
  for (const Json& step : steps) {
    const auto groups = step.find("communication");
    if (groups == step.end() || !groups->is_object()) continue;
    for (const auto& [name, group] : groups->items())
      waits[name] += number(group, "wait_seconds").value_or(0) / static_cast<double>(steps.size());
  }
  return waits;
}

TimeSplit time_split(const std::vector<Json>& steps) {
  TimeSplit split{.exposed = mean_waits(steps)};
  const auto step = mean_of(steps, "seconds", "step");
  split.step = step ? *step : mean_of(steps, nullptr, "step_ms").value_or(0) / 1e3;
  double waits = 0;
  for (const auto& [group, seconds] : split.exposed) waits += seconds;
  if (const auto pipeline = split.exposed.extract("pp")) split.bubble = pipeline.mapped();
  split.data = mean_of(steps, "seconds", "data");
  split.save = mean_of(steps, "seconds", "save");
  split.compute = mean_of(steps, "seconds", "compute");
  if (!split.compute && !steps.empty()) split.compute = std::max(0.0, split.step - waits);
  return split;
}

std::vector<MeasuredBytes> measured_bytes(const std::vector<Json>& steps,
                                          const StudyForecast& forecast) {
  std::map<std::pair<std::string, std::string>, std::vector<int64_t>> counted;
  for (const Json& step : steps) {
    const auto groups = step.find("communication");
    if (groups == step.end() || !groups->is_object()) continue;
    for (const auto& [name, group] : groups->items())
      for (const auto& [operation, traffic] : group.items())
        if (const auto bytes = traffic.is_object() ? whole_number(traffic, "bytes") : std::nullopt)
          counted[{name, operation}].push_back(*bytes);
  }
  std::vector<MeasuredBytes> list;
  for (const StepBytes& item : forecast.bytes) {
    MeasuredBytes& entry =
        list.emplace_back(MeasuredBytes{.group = item.group,
                                        .operation = collective_name(item.operation),
                                        .predicted = item.bytes});
    auto& values = counted[{entry.group, entry.operation}];
    if (values.empty()) {
      if (!steps.empty()) entry.measured = 0;
      continue;
    }
    std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
    entry.measured = values[values.size() / 2];
    values.clear();
  }
  // What no formula speaks of.
  for (auto& [key, values] : counted) {
    if (values.empty()) continue;
    std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
    if (const int64_t median = values[values.size() / 2]; median > 0)
      list.push_back({.group = key.first, .operation = key.second, .measured = median});
  }
  return list;
}

void read_metrics(const std::string& run_folder, const StudyForecast& forecast,
                  PointMeasures& measures) {
  const std::vector<Json> records = read_records(metrics_path(run_folder));
  for (const Json& record : records) {
    if (const auto step = whole_number(record, "iteration"); step && record.contains("lm_loss"))
      measures.last_step = *step;
    if (const auto bubble = number(record, "predicted_bubble")) measures.predicted_bubble = bubble;
    if (const auto bubble = number(record, "measured_bubble")) measures.measured_bubble = bubble;
    if (const auto bytes = whole_number(record, "memory_bytes_plan")) measures.memory_plan = bytes;
    if (const auto bytes = whole_number(record, "memory_peak_bytes")) measures.memory_peak = bytes;
    if (const auto time = number(record, "time")) measures.ended = *time;
  }
  const std::vector<Json> steps = measured_steps(records);
  measures.steps = std::ssize(steps);
  if (steps.empty()) return;
  std::vector<double> rates, utilisations;
  for (const Json& step : steps) {
    rates.push_back(number(step, "tokens_per_second").value_or(0));
    if (const auto mfu = number(step, "mfu")) utilisations.push_back(*mfu);
  }
  measures.tokens_per_second = spread_of(rates);
  if (!utilisations.empty()) measures.mfu = spread_of(utilisations).median;
  measures.split = time_split(steps);
  measures.bytes = measured_bytes(steps, forecast);
}

void read_history(const std::string& run_folder, PointMeasures& measures) {
  for (const Json& record : read_ledger(run_folder)) {
    const std::string event = text(record, "event");
    if (event == "attempt_begin" && record.contains("nodes") && record["nodes"].is_array())
      measures.nodes = record["nodes"].get<std::vector<std::string>>();
    if (event == "attempt_begin") measures.cause.clear();
    if (event == "hang" || event == "attempt_end")
      for (const char* key : {"text", "cause"})
        if (measures.cause.empty()) measures.cause = text(record, key);
    if (const auto code = whole_number(record, "exit_code"); event == "attempt_end" && code)
      measures.cause = *code == 0 ? ""
                                  : fmt::format("exit code {}{}{}", *code,
                                                measures.cause.empty() ? "" : ": ", measures.cause);
  }
}

}  // namespace

Spread spread_of(std::vector<double> values) {
  check(!values.empty(), "nothing to take the spread of");
  std::sort(values.begin(), values.end());
  const auto quantile = [&](double part) {
    const double place = part * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(place);
    const size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (place - static_cast<double>(below)) * (values[above] - values[below]);
  };
  return {.median = quantile(0.5), .p10 = quantile(0.1), .p90 = quantile(0.9)};
}

PointMeasures read_measures(const std::string& run_folder, const StudyForecast& forecast) {
  PointMeasures measures{.memory_plan = forecast.memory_bytes};
  if (forecast.bubble > 0) measures.predicted_bubble = forecast.bubble;
  read_metrics(run_folder, forecast, measures);
  read_history(run_folder, measures);
  return measures;
}

PointResult point_result(const Study& study, const StudyPoint& point, const PointJob& job) {
  PointResult result{.point = point};
  if (!point.problems.empty()) {
    result.state = PointState::impossible;
    result.cause = fmt::format("{}", fmt::join(point.problems, "\n"));
    return result;
  }
  const std::string folder = study.run_folder(point);
  result.measures = read_measures(folder, point.forecast);
  if (!job.id.empty()) result.log = fmt::format("{}/slurm-{}.log", folder, job.id);
  if (job.is_active())
    result.state = job.slurm->state == "PENDING" ? PointState::queued : PointState::running;
  else if (result.measures.last_step >= point.train_iters)
    result.state = PointState::done;
  else if (!job.id.empty())
    result.state = job.asked ? PointState::failed : PointState::unknown;
  if (result.state != PointState::failed) return result;
  result.cause = fmt::format("job {} ended after step {} of {}", job.id, result.measures.last_step,
                             point.train_iters);
  if (job.slurm)
    result.cause += fmt::format(" ({}, {}, exit code {})", job.slurm->state, job.slurm->reason,
                                job.slurm->exit_code);
  if (!result.measures.cause.empty()) result.cause += "\n" + result.measures.cause;
  return result;
}

std::string set_efficiencies(std::vector<PointResult>& results) {
  const auto finished = [](const PointResult& result) {
    return result.state == PointState::done && result.measures.tokens_per_second &&
           result.measures.tokens_per_second->median > 0;
  };
  const PointResult* first = nullptr;
  for (const PointResult& result : results) {
    if (!finished(result)) continue;
    const bool fewer = first == nullptr || result.point.nodes < first->point.nodes;
    const bool faster =
        first != nullptr && result.point.nodes == first->point.nodes &&
        result.measures.tokens_per_second->median > first->measures.tokens_per_second->median;
    if (fewer || faster) first = &result;
  }
  if (first == nullptr) return "";
  const auto per_rank = [](const PointResult& result) {
    return result.measures.tokens_per_second->median / static_cast<double>(result.point.ranks);
  };
  const double ideal = per_rank(*first);
  std::string name = first->point.name;
  for (PointResult& result : results)
    if (finished(result)) result.efficiency = per_rank(result) / ideal;
  return name;
}

}  // namespace phalanx
