// The page around the figures.
#include "cluster/report.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>

#include "cluster/chart.h"
#include "cluster/external_command.h"
#include "cluster/report_style.h"
#include "cluster/report_table.h"

namespace phalanx {
namespace {

std::string date(double seconds) {
  return fmt::format("{:%Y-%m-%d %H:%M:%S}", fmt::localtime(static_cast<std::time_t>(seconds)));
}

std::string head(const StudyReport& report) {
  const Study& study = report.study;
  int64_t done = 0;
  for (const PointResult& result : report.results) done += result.state == PointState::done;
  std::string text = fmt::format(
      "<h1>Scaling study, {} scaling</h1>\n<p class=\"soft\">{} of {} points done. {} per node. "
      "Begun {} on {}, written {}, by phalanx {}.</p>\n",
      study.weak ? "weak" : "strong", done, report.results.size(),
      study.ranks_per_node == 1 ? "1 rank" : fmt::format("{} ranks", study.ranks_per_node),
      date(study.created), xml_text(study.host), date(report.written), xml_text(study.version));
  text += study.weak
              ? "<p>The global batch grows with the nodes: ideally tokens/s per rank stay.</p>\n"
              : "<p>The global batch is the same at every node count: ideally a step takes "
                "as many times less as there are more nodes.</p>\n";
  text += fmt::format(
      "<p>All times and bytes are of rank 0, which alone keeps records. The first {} steps of "
      "every point are left out: they warm up.{}</p>\n",
      kWarmupSteps,
      report.first_point.empty()
          ? ""
          : fmt::format(" Efficiencies are against point {}.", xml_text(report.first_point)));
  return text;
}

/// A cell that says which figure of the CSV it is.
std::string cell(const PointResult& result, const ReportColumn& column,
                 const std::string& more_class = "") {
  const std::string text = column.text(result);
  std::string kind = column.words ? "word" : "";
  if (column.name == "state")
    for (const char c : " " + text) kind += c == ' ' && kind != "word" ? '-' : c;
  if (!more_class.empty()) kind += (kind.empty() ? "" : " ") + more_class;
  return fmt::format("<td{} data-point=\"{}\" data-column=\"{}\">{}</td>",
                     kind.empty() ? "" : fmt::format(" class=\"{}\"", kind),
                     xml_text(result.point.name), column.name, xml_text(text));
}

std::string definitions(const std::vector<ReportColumn>& columns) {
  std::string text = "<dl>\n";
  for (const ReportColumn& column : columns)
    text += fmt::format("<dt>{}</dt><dd>{}</dd>\n", xml_text(column.heading),
                        xml_text(column.definition));
  return text + "</dl>\n";
}

/// Without the columns that no point has a figure for.
std::string table_html(ReportTable table, const std::vector<PointResult>& results) {
  std::erase_if(table.columns, [&](const ReportColumn& column) {
    return std::ranges::all_of(results, [&](const auto& r) { return column.text(r).empty(); });
  });
  if (table.columns.empty()) return "";
  std::string html = fmt::format(
      "<h2>{}</h2>\n<div class=\"wide\"><table>\n<thead><tr><th>point</th>", xml_text(table.title));
  for (const ReportColumn& column : table.columns)
    html += fmt::format("<th{}>{}</th>", column.words ? " class=\"word\"" : "",
                        xml_text(column.heading));
  html += "</tr></thead>\n<tbody>\n";
  for (const PointResult& result : results) {
    html += fmt::format("<tr><th>{}</th>", xml_text(result.point.name));
    for (const ReportColumn& column : table.columns) html += cell(result, column);
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n" + definitions(table.columns);
}

std::string bytes_html(const std::vector<PointResult>& results) {
  const std::vector<ByteColumns> columns = byte_columns(results);
  if (columns.empty()) return "";
  std::string html =
      "<h2>Bytes of a step</h2>\n<div class=\"wide\"><table>\n<thead><tr><th>point</th>"
      "<th class=\"word\">group</th><th "
      "class=\"word\">operation</th><th>measured</th><th>predicted</th></tr></thead>\n<tbody>\n";
  for (const PointResult& result : results)
    for (const ByteColumns& item : columns) {
      const std::string measured = item.measured.text(result);
      const std::string predicted = item.predicted.text(result);
      if (measured.empty() && predicted.empty()) continue;
      const bool differs = !measured.empty() && !predicted.empty() && measured != predicted;
      html += fmt::format(
          "<tr><th>{}</th><td class=\"word\">{}</td><td class=\"word\">{}</td>{}{}"
          "</tr>\n",
          xml_text(result.point.name), item.group, item.operation,
          cell(result, item.measured, differs ? "differs" : ""), cell(result, item.predicted));
    }
  return html + "</tbody></table></div>\n" +
         definitions(
             {{"",
               "group",
               "ranks that share an axis: tp tensor, cp context, pp pipeline, ep expert, dp data; "
               "dp_cp data and context together, world all",
               {}},
              {"",
               "measured",
               "bytes that rank 0 hands in (of an all-gather: contributes) in the median step",
               {}},
              {"",
               "predicted",
               "the same by closed formula from model and layout; empty where the routing of "
               "experts decides, or no formula speaks of it; red: they differ",
               {}}});
}

std::string troubles_html(const std::vector<PointResult>& results) {
  std::string html;
  for (const PointResult& result : results) {
    if (result.state != PointState::failed && result.state != PointState::impossible) continue;
    html += fmt::format("<p><b class=\"{0}\">{1} {0}</b></p>\n<pre>{2}{3}</pre>\n",
                        enum_name(result.state), xml_text(result.point.name),
                        xml_text(result.cause.empty() ? "no cause is known" : result.cause),
                        result.log.empty() ? "" : "\nlog: " + xml_text(result.log));
  }
  return html.empty() ? "" : "<h2>Points without a result</h2>\n" + html;
}

std::string commands_html(const StudyReport& report) {
  std::string html = fmt::format("<h2>Command lines</h2>\n<p>The study:</p>\n<pre>{}</pre>\n",
                                 xml_text(command_text(report.study.command)));
  for (const PointResult& result : report.results)
    html += fmt::format("<p>{} ({} ranks):</p>\n<pre>{}</pre>\n", xml_text(result.point.name),
                        result.point.ranks, xml_text(command_line(result.point)));
  return html;
}

}  // namespace

std::string report_html(const StudyReport& report) {
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
      "<title>Scaling study</title>\n<style>{}</style>\n</head>\n<body>\n",
      kReportStyle);
  html += head(report) + troubles_html(report.results) + report_pictures(report);
  for (const ReportTable& table : report_tables(report.results))
    html += table_html(table, report.results);
  return html + bytes_html(report.results) + commands_html(report) + "</body>\n</html>\n";
}

std::string write_report(const StudyReport& report) {
  replace_file(report.study.folder + "/report.csv", report_csv(report.results));
  std::string path = report.study.folder + "/report.html";
  replace_file(path, report_html(report));
  return path;
}

}  // namespace phalanx
