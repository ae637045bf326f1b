// Every figure: its name, its definition, its text.
#include "cluster/report_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "cluster/external_command.h"

namespace phalanx {
namespace {

constexpr double kMebibyte = 1024.0 * 1024.0;

std::string whole(std::optional<int64_t> value) {
  return value ? std::to_string(*value) : "";
}
std::string fixed(std::optional<double> value, int digits, double factor = 1) {
  return value ? fmt::format("{:.{}f}", *value * factor, digits) : "";
}
std::string milliseconds(std::optional<double> seconds) {
  return fixed(seconds, 3, 1e3);
}
std::string percent(std::optional<double> part) {
  return fixed(part, 1, 100);
}
std::string mebibytes(std::optional<int64_t> bytes) {
  return bytes ? fixed(static_cast<double>(*bytes), 1, 1 / kMebibyte) : "";
}

ReportTable point_table() {
  return {
      "Points",
      {{"nodes", "nodes", "machines asked for",
        [](const PointResult& r) { return std::to_string(r.point.nodes); }},
       {"ranks", "ranks", "processes, nodes x ranks per node",
        [](const PointResult& r) { return std::to_string(r.point.ranks); }},
       {"layout", "layout",
        "how the ranks share the model: tp tensor, pp pipeline, cp context, ep expert parallel; "
        "data parallelism fills the rest",
        [](const PointResult& r) {
          return r.point.layout.empty() ? "as in the options" : r.point.layout;
        },
        true},
       {"global_batch_size", "global batch", "sequences per step, all ranks together",
        [](const PointResult& r) { return std::to_string(r.point.global_batch_size); }},
       {"state", "state",
        "done, running, queued, not queued; failed or impossible: reasons at the top of the page; "
        "unknown: not done, and there was no Slurm to ask",
        [](const PointResult& r) { return std::string(enum_name(r.state)); }, true},
       {"steps_measured", "steps measured",
        fmt::format("steps of the newest start behind its first {}, which warm up", kWarmupSteps),
        [](const PointResult& r) { return std::to_string(r.measures.steps); }},
       {"machines", "machines", "names of the nodes the point ran on",
        [](const PointResult& r) { return fmt::format("{}", fmt::join(r.measures.nodes, " ")); },
        true}}};
}

ReportTable speed_table() {
  const auto spread = [](const PointResult& r, double Spread::*which) {
    const auto& rates = r.measures.tokens_per_second;
    return rates ? fmt::format("{:.1f}", (*rates).*which) : "";
  };
  return {
      "Speed",
      {{"tokens_per_second_median", "tokens/s",
        "original tokens trained on per second by all ranks together, median of the steps",
        [=](const PointResult& r) { return spread(r, &Spread::median); }},
       {"tokens_per_second_p10", "p10", "a tenth of the steps were slower than this",
        [=](const PointResult& r) { return spread(r, &Spread::p10); }},
       {"tokens_per_second_p90", "p90", "a tenth of the steps were faster than this",
        [=](const PointResult& r) { return spread(r, &Spread::p90); }},
       {"tokens_per_second_per_rank", "per rank", "median tokens/s over the number of ranks",
        [](const PointResult& r) {
          const auto& rates = r.measures.tokens_per_second;
          return rates ? fmt::format("{:.1f}", rates->median / static_cast<double>(r.point.ranks))
                       : "";
        }},
       {"efficiency_percent", "efficiency %",
        "median tokens/s per rank in percent of the first point's (the fastest finished one on the "
        "fewest nodes): strong scaling's speed-up over ideal speed-up, weak scaling's kept "
        "throughput per rank",
        [](const PointResult& r) { return percent(r.efficiency); }},
       {"mfu_percent", "MFU %",
        "model FLOPs (forward and backward, nothing recomputed) per second in percent of the "
        "ranks' peak, median of the steps",
        [](const PointResult& r) { return fixed(r.measures.mfu, 2, 100); }}}};
}

std::set<std::string> exposed_groups(const std::vector<PointResult>& results) {
  std::set<std::string> groups;
  for (const PointResult& result : results)
    for (const auto& [group, seconds] : result.measures.split.exposed)
      if (seconds > 0) groups.insert(group);
  return groups;
}

ReportTable time_table(const std::vector<PointResult>& results) {
  ReportTable table{
      "Time of a step",
      {{"step_ms", "step ms", "mean time of a measured step on rank 0",
        [](const PointResult& r) {
          return r.measures.steps > 0 ? milliseconds(r.measures.split.step) : "";
        }},
       {"compute_ms", "compute ms", "mean of what is left of a step without the columns beside",
        [](const PointResult& r) { return milliseconds(r.measures.split.compute); }}}};
  for (const std::string& group : exposed_groups(results))
    table.columns.push_back(
        {fmt::format("exposed_{}_ms", group), fmt::format("exposed {} ms", group),
         fmt::format("mean wait per step for communication of group {} that computing did not hide",
                     group),
         [group](const PointResult& r) {
           const auto found = r.measures.split.exposed.find(group);
           return found == r.measures.split.exposed.end() ? "" : milliseconds(found->second);
         }});
  const ReportColumn rest[] = {
      {"bubble_ms", "bubble ms",
       "mean wait per step for other pipeline stages (exposed communication of group pp)",
       [](const PointResult& r) { return milliseconds(r.measures.split.bubble); }},
      {"data_ms", "data ms", "mean wait per step for the next batch",
       [](const PointResult& r) { return milliseconds(r.measures.split.data); }},
      {"save_ms", "save ms",
       "mean time between two steps that training stood still for checkpoints; not part of the "
       "step, "
       "nor of tokens/s",
       [](const PointResult& r) { return milliseconds(r.measures.split.save); }},
      {"bubble_predicted_percent", "bubble predicted %",
       "part of a step that pipeline ranks idle by the schedule and the stages' FLOPs, messages "
       "taking no time",
       [](const PointResult& r) { return percent(r.measures.predicted_bubble); }},
      {"bubble_measured_percent", "bubble measured %",
       "wait for pipeline messages over the time of all steps, mean of all ranks",
       [](const PointResult& r) { return percent(r.measures.measured_bubble); }}};
  table.columns.insert(table.columns.end(), std::begin(rest), std::end(rest));
  return table;
}

ReportTable memory_table() {
  return {"Memory",
          {{"memory_plan_mib", "plan MiB",
            "what the rank that needs most was to need: weights, gradients, optimizer, activations",
            [](const PointResult& r) {
              return r.state == PointState::impossible ? "" : mebibytes(r.measures.memory_plan);
            }},
           {"memory_peak_mib", "peak MiB",
            "most that any rank held at any time: on the CPU its resident set, which also has the "
            "program and its libraries; on a GPU its device memory",
            [](const PointResult& r) { return mebibytes(r.measures.memory_peak); }}}};
}

const MeasuredBytes* find_bytes(const PointResult& result, const std::string& group,
                                const std::string& operation) {
  for (const MeasuredBytes& item : result.measures.bytes)
    if (item.group == group && item.operation == operation) return &item;
  return nullptr;
}

}  // namespace

std::vector<ReportTable> report_tables(const std::vector<PointResult>& results) {
  return {point_table(), speed_table(), time_table(results), memory_table()};
}

std::vector<ByteColumns> byte_columns(const std::vector<PointResult>& results) {
  std::set<std::pair<std::string, std::string>> keys;
  for (const PointResult& result : results)
    for (const MeasuredBytes& item : result.measures.bytes)
      keys.insert({item.group, item.operation});
  std::vector<ByteColumns> list;
  for (const auto& key : keys) {
    const std::string& group = key.first;
    const std::string& operation = key.second;
    const auto column = [&](const char* what, std::optional<int64_t> MeasuredBytes::*field) {
      return ReportColumn{fmt::format("bytes_{}_{}_{}", group, operation, what), what, "",
                          [=](const PointResult& r) {
                            const MeasuredBytes* item = find_bytes(r, group, operation);
                            return item == nullptr ? "" : whole(item->*field);
                          }};
    };
    list.push_back({group, operation, column("measured", &MeasuredBytes::measured),
                    column("predicted", &MeasuredBytes::predicted)});
  }
  return list;
}

std::string csv_line(const std::vector<std::string>& fields) {
  std::string line;
  for (const std::string& field : fields) {
    if (&field != &fields.front()) line += ',';
    if (field.find_first_of("\",\r\n") == std::string::npos) {
      line += field;
      continue;
    }
    line += '"';
    for (const char c : field) line.append(c == '"' ? 2 : 1, c);
    line += '"';
  }
  return line + "\r\n";
}

std::string report_csv(const std::vector<PointResult>& results) {
  std::vector<const ReportColumn*> columns;
  const std::vector<ReportTable> tables = report_tables(results);
  const std::vector<ByteColumns> bytes = byte_columns(results);
  for (const ReportTable& table : tables)
    for (const ReportColumn& column : table.columns) columns.push_back(&column);
  for (const ByteColumns& item : bytes) {
    columns.push_back(&item.measured);
    columns.push_back(&item.predicted);
  }
  std::vector<std::string> fields{"point"};
  for (const ReportColumn* column : columns) fields.push_back(column->name);
  fields.insert(fields.end(), {"cause", "command"});
  std::string text = csv_line(fields);
  for (const PointResult& result : results) {
    fields = {result.point.name};
    for (const ReportColumn* column : columns) fields.push_back(column->text(result));
    fields.push_back(result.cause);
    fields.push_back(command_line(result.point));
    text += csv_line(fields);
  }
  return text;
}

std::string command_line(const StudyPoint& point) {
  std::vector<std::string> words{"phalanx", "train"};
  words.insert(words.end(), point.arguments.begin(), point.arguments.end());
  return command_text(words);
}

}  // namespace phalanx
