// What the page draws: speed and efficiency over nodes, time and bytes per point.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "cluster/chart.h"
#include "cluster/report.h"

namespace phalanx {
namespace {

struct Picture {
  std::string title;
  std::string caption;
  std::string svg;
  std::vector<std::pair<std::string, size_t>> legend{};
};

std::string figure(const Picture& picture) {
  return fmt::format("<figure>\n<figcaption><b>{}</b>{}</figcaption>\n{}{}</figure>\n",
                     xml_text(picture.title), xml_text(picture.caption), picture.svg,
                     picture.legend.empty() ? "" : chart_legend(picture.legend));
}

std::string layout_name(const StudyPoint& point) {
  return point.layout.empty() ? "as in the options" : point.layout;
}

bool measured(const PointResult& result) {
  return result.efficiency && result.measures.tokens_per_second;
}

/// Finished points of each layout, in the order of nodes.
std::vector<std::pair<std::string, std::vector<const PointResult*>>> by_layout(
    const StudyReport& report) {
  std::vector<std::pair<std::string, std::vector<const PointResult*>>> list;
  for (const PointResult& result : report.results) {
    if (!measured(result)) continue;
    const std::string name = layout_name(result.point);
    auto found = std::ranges::find(list, name, [](const auto& entry) { return entry.first; });
    if (found == list.end()) found = list.insert(list.end(), {name, {}});
    found->second.push_back(&result);
  }
  return list;
}

std::vector<double> node_counts(const StudyReport& report) {
  std::set<double> counts;
  for (const PointResult& result : report.results)
    counts.insert(static_cast<double>(result.point.nodes));
  return {counts.begin(), counts.end()};
}

std::string speed_chart(const StudyReport& report) {
  LineChart chart{.title = "Tokens per second over nodes",
                  .x = {.title = "nodes", .logarithmic = true, .ticks = node_counts(report)},
                  .y = {.title = "tokens/s", .logarithmic = true}};
  const PointResult* first = nullptr;
  for (const PointResult& result : report.results)
    if (result.point.name == report.first_point) first = &result;
  if (first == nullptr) return "";
  ChartLine ideal{.name = "ideal", .dashed = true};
  for (const double nodes : chart.x.ticks) {
    const double rate =
        first->measures.tokens_per_second->median * nodes / static_cast<double>(first->point.nodes);
    ideal.points.push_back({nodes, rate, rate, rate});
  }
  chart.lines.push_back(ideal);
  std::vector<std::pair<std::string, size_t>> names;
  for (const auto& [layout, points] : by_layout(report)) {
    ChartLine& line = chart.lines.emplace_back(ChartLine{.name = layout});
    for (const PointResult* point : points) {
      const Spread& rate = *point->measures.tokens_per_second;
      line.points.push_back(
          {static_cast<double>(point->point.nodes), rate.median, rate.p10, rate.p90});
    }
    names.emplace_back(layout, names.size());
  }
  return figure({"Speed",
                 "Tokens per second of all ranks, median of the steps; band and strokes: the "
                 "middle four fifths of the steps. Dashed: as many times the first point's as "
                 "there are nodes. Both axes are logarithmic.",
                 line_chart(chart), names});
}

std::string efficiency_chart(const StudyReport& report) {
  LineChart chart{.title = "Efficiency over nodes",
                  .x = {.title = "nodes", .logarithmic = true, .ticks = node_counts(report)},
                  .y = {.title = "efficiency %"}};
  ChartLine ideal{.name = "ideal", .dashed = true};
  for (const double nodes : chart.x.ticks) ideal.points.push_back({nodes, 100, 100, 100});
  chart.lines.push_back(ideal);
  std::vector<std::pair<std::string, size_t>> names;
  for (const auto& [layout, points] : by_layout(report)) {
    ChartLine& line = chart.lines.emplace_back(ChartLine{.name = layout});
    for (const PointResult* point : points) {
      const Spread& rate = *point->measures.tokens_per_second;
      const double scale = 100 * *point->efficiency / rate.median;
      line.points.push_back({static_cast<double>(point->point.nodes), scale * rate.median,
                             scale * rate.p10, scale * rate.p90});
    }
    names.emplace_back(layout, names.size());
  }
  return figure({"Efficiency",
                 fmt::format("Tokens per second and rank in percent of point {}; band and strokes: "
                             "the middle four fifths of the steps. Dashed: 100 %.",
                             report.first_point),
                 line_chart(chart), names});
}

using Parts = std::vector<std::pair<std::string, double>>;

/// The same colour for a group in every picture, whatever the others are.
size_t colour_of(const std::string& name) {
  const std::vector<std::string> order{"compute", "tp",   "dp_cp",     "pp",
                                       "cp",      "ep",   "dp",        "world",
                                       "data",    "save", "expert_tp", "expert_dp"};
  const std::string exposed = "exposed ";
  const std::string group = name == "bubble"            ? "pp"
                            : name.starts_with(exposed) ? name.substr(exposed.size())
                                                        : name;
  return static_cast<size_t>(std::ranges::find(order, group) - order.begin());
}

/// Named parts of every point as bars.
std::string stacked(const Picture& picture, const std::string& unit,
                    const std::vector<std::string>& labels, const std::vector<Parts>& parts,
                    const std::vector<std::optional<double>>& marks) {
  if (labels.empty()) return "";
  Picture result = picture;
  BarChart chart{.title = picture.title, .unit = unit};
  std::map<size_t, std::string> names;  // by colour, which is the parts' order too
  for (const Parts& bar : parts)
    for (const auto& [name, value] : bar) names.emplace(colour_of(name), name);
  for (const auto& [colour, name] : names) {
    chart.colours.push_back(colour);
    result.legend.emplace_back(name, colour);
  }
  for (size_t i = 0; i < labels.size(); ++i) {
    ChartBar bar{.label = labels[i], .parts = std::vector<double>(names.size()), .mark = marks[i]};
    for (const auto& [name, value] : parts[i])
      bar.parts[static_cast<size_t>(std::distance(names.begin(), names.find(colour_of(name))))] +=
          value;
    chart.bars.push_back(std::move(bar));
  }
  result.svg = bar_chart(chart);
  return figure(result);
}

std::string label_of(const PointResult& result) {
  const StudyPoint& point = result.point;
  return fmt::format("{} node{}{}{}", point.nodes, point.nodes == 1 ? "" : "s",
                     point.layout.empty() ? "" : ", ", point.layout);
}

std::string time_chart(const StudyReport& report) {
  std::vector<std::string> labels;
  std::vector<Parts> parts;
  for (const PointResult& result : report.results) {
    if (!measured(result)) continue;
    const TimeSplit& split = result.measures.split;
    Parts& bar = parts.emplace_back();
    // What would be no wider than a hair only fills the legend.
    const auto add = [&](const std::string& name, std::optional<double> seconds) {
      if (seconds.value_or(0) > 1e-3 * split.step) bar.emplace_back(name, 1e3 * *seconds);
    };
    add("compute", split.compute);
    for (const auto& [group, seconds] : split.exposed) add("exposed " + group, seconds);
    add("bubble", split.bubble);
    add("data", split.data);
    add("save", split.save);
    labels.push_back(label_of(result));
  }
  return stacked({.title = "Time of a step",
                  .caption = "Mean step of rank 0: computing, communication of each group that "
                             "computing did not hide, waiting for other pipeline stages (bubble), "
                             "for data, and (between steps) for checkpoints."},
                 "ms per step", labels, parts, std::vector<std::optional<double>>(labels.size()));
}

std::string bytes_chart(const StudyReport& report) {
  std::vector<std::string> labels;
  std::vector<Parts> parts;
  std::vector<std::optional<double>> marks;
  for (const PointResult& result : report.results) {
    if (!measured(result)) continue;
    Parts& bar = parts.emplace_back();
    double predicted = 0;
    bool all = true;
    for (const MeasuredBytes& item : result.measures.bytes) {
      bar.emplace_back(item.group, static_cast<double>(item.measured.value_or(0)));
      predicted += static_cast<double>(item.predicted.value_or(0));
      all = all && item.predicted.has_value();
    }
    marks.push_back(all && !bar.empty() ? std::optional<double>(predicted) : std::nullopt);
    labels.push_back(label_of(result));
  }
  return stacked({.title = "Bytes of a step",
                  .caption = "Bytes that rank 0 hands to each group in a step, counted. Stroke: "
                             "the sum of the closed formulas (none where the data decides)."},
                 "bytes per step", labels, parts, marks);
}

}  // namespace

std::string report_pictures(const StudyReport& report) {
  if (report.first_point.empty())
    return "<p>No point has finished yet: there is nothing to draw.</p>\n";
  return "<div class=\"pictures\">\n" + speed_chart(report) + efficiency_chart(report) +
         time_chart(report) + bytes_chart(report) + "</div>\n";
}

}  // namespace phalanx
