// Traces as files.
#include "core/train/step_profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "data/file_io.h"

namespace phalanx {
namespace {

constexpr double kMicro = 1e6;

// Lines of a process in the viewer, top to bottom.
constexpr int kPhaseLine = 1;
constexpr int kOpLine = 2;
constexpr int kCommunicationLine = 3;
constexpr int kDeviceLine = 4;

int line_of(TraceLane lane) {
  switch (lane) {
    case TraceLane::phase:
      return kPhaseLine;
    case TraceLane::op:
      return kOpLine;
    case TraceLane::communication:
      return kCommunicationLine;
  }
  return kPhaseLine;
}

nlohmann::json complete_event(const TraceEvent& event, int line, double begin, double end) {
  nlohmann::json json{{"name", event.name},
                      {"ph", "X"},
                      {"tid", line},
                      {"ts", begin * kMicro},
                      {"dur", (end - begin) * kMicro}};
  if (event.flops > 0) json["args"]["flops"] = event.flops;
  if (event.bytes > 0) json["args"]["bytes"] = event.bytes;
  return json;
}

nlohmann::json name_event(const char* what, int line, const std::string& name) {
  return {{"name", what}, {"ph", "M"}, {"tid", line}, {"args", {{"name", name}}}};
}

/// Where an event's time is counted: on the device if it has a clock of its own.
double seconds_of(const TraceEvent& event) {
  return event.device_end >= 0 ? event.device_end - event.device_begin : event.end - event.begin;
}

struct Total {
  std::string name;
  int64_t calls = 0;
  double seconds = 0, flops = 0, bytes = 0;
};

std::vector<Total> totals_of(const std::vector<TraceEvent>& events) {
  std::map<std::string, Total> by_name;
  for (const TraceEvent& event : events) {
    if (event.lane == TraceLane::phase) continue;
    Total& total = by_name[event.name];
    total.name = event.name;
    ++total.calls;
    total.seconds += seconds_of(event);
    total.flops += event.flops;
    total.bytes += static_cast<double>(event.bytes);
  }
  std::vector<Total> totals;
  for (auto& [name, total] : by_name) totals.push_back(std::move(total));
  std::stable_sort(totals.begin(), totals.end(),
                   [](const Total& a, const Total& b) { return a.seconds > b.seconds; });
  return totals;
}

int64_t parse_step(const std::string& text, std::string_view word) {
  int64_t step = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), step);
  check_usage(error == std::errc() && end == word.data() + word.size() && step >= 1, "profile '",
              text, "' must be a step or a range of steps counted from 1, e.g. 5 or 5-7");
  return step;
}

}  // namespace

StepRange parse_step_range(const std::string& text) {
  const std::string_view view = text;
  const size_t dash = view.find('-');
  StepRange steps;
  steps.first = parse_step(text, view.substr(0, dash));
  steps.last =
      dash == std::string_view::npos ? steps.first : parse_step(text, view.substr(dash + 1));
  check_usage(steps.first <= steps.last, "profile '", text, "' ends before it begins");
  return steps;
}

std::string chrome_trace(const std::vector<TraceEvent>& events, const TraceOwner& owner) {
  nlohmann::json list = nlohmann::json::array();
  list.push_back(name_event(
      "process_name", 0,
      fmt::format("rank {} of {} ({})", owner.rank, owner.num_ranks, device_name(owner.device))));
  list.push_back(name_event("thread_name", kPhaseLine, "phases"));
  list.push_back(name_event("thread_name", kOpLine, "ops"));
  list.push_back(name_event("thread_name", kCommunicationLine, "communication"));
  if (owner.device != Device::cpu) list.push_back(name_event("thread_name", kDeviceLine, "device"));
  double origin = events.empty() ? 0.0 : events.front().begin;
  for (const TraceEvent& event : events) origin = std::min(origin, event.begin);
  for (const TraceEvent& event : events) {
    list.push_back(
        complete_event(event, line_of(event.lane), event.begin - origin, event.end - origin));
    if (event.device_end >= 0)
      list.push_back(complete_event(event, kDeviceLine, event.device_begin - origin,
                                    event.device_end - origin));
  }
  for (nlohmann::json& event : list) event["pid"] = owner.rank;
  return nlohmann::json{{"traceEvents", list}, {"displayTimeUnit", "ms"}}.dump();
}

std::string profile_table(const std::vector<TraceEvent>& events) {
  const std::vector<Total> totals = totals_of(events);
  double seconds = 0;
  for (const Total& total : totals) seconds += total.seconds;
  std::string text = fmt::format("{:<28}{:>8}{:>14}{:>9}{:>12}{:>10}\n", "op", "calls", "ms",
                                 "share", "GFLOP/s", "GB/s");
  for (const Total& total : totals) {
    const auto rate = [&](double work) {
      return work > 0 && total.seconds > 0 ? fmt::format("{:.1f}", work / total.seconds * 1e-9)
                                           : std::string("-");
    };
    text += fmt::format("{:<28}{:>8}{:>14.3f}{:>8.1f}%{:>12}{:>10}\n", total.name, total.calls,
                        total.seconds * 1e3, seconds > 0 ? 100 * total.seconds / seconds : 0.0,
                        rate(total.flops), rate(total.bytes));
  }
  return text;
}

StepProfile::StepProfile(const StepRange& steps, std::string folder, const TraceOwner& owner,
                         Backend& backend)
    : steps_(steps), folder_(std::move(folder)), owner_(owner), backend_(backend) {}

void StepProfile::begin_step(int64_t step) {
  if (step < steps_.first || step > steps_.last) return;
  // A resumed run may begin inside the range.
  if (trace_ == nullptr) {
    backend_.synchronize();
    trace_ = std::make_unique<Trace>(backend_.device_clock());
    trace_->start();
  }
  step_range_.emplace("step", TraceLane::phase);
}

void StepProfile::end_step(int64_t step) {
  step_range_.reset();
  if (step >= steps_.last) finish();
}

void StepProfile::finish() {
  if (trace_ == nullptr) return;
  trace_->stop();
  const std::vector<TraceEvent> events = trace_->take();
  trace_.reset();
  std::filesystem::create_directories(folder_);
  const std::string stem = fmt::format("{}/rank_{:05}", folder_, owner_.rank);
  write_file(stem + ".json", chrome_trace(events, owner_));
  write_file(stem + ".txt", profile_table(events));
  written_ = folder_;
}

}  // namespace phalanx
