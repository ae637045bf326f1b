// Charts as SVG text: a few lines over numbers, and bars of several parts. Colours come from the
// page (classes s0 to s11, ink, grid), so that one picture serves light and dark pages.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace phalanx {

/// Text with &, <, > and quotes written so that XML may hold it.
std::string xml_text(const std::string& text);
/// "1.5k", "20M": up to three digits and a letter for thousands.
std::string short_number(double value);

struct Axis {
  std::string title;
  bool logarithmic = false;
  std::vector<double> ticks{};  // empty: chosen by the chart, round numbers
};

/// Band: low to high around y; none where both equal y.
struct ChartPoint {
  double x = 0;
  double y = 0;
  double low = 0;
  double high = 0;
};
struct ChartLine {
  std::string name;
  std::vector<ChartPoint> points;
  bool dashed = false;  // an ideal: no markers, no band, grey
};
struct LineChart {
  std::string title;  // for readers that do not see
  Axis x, y;          // linear axes of y begin at 0
  std::vector<ChartLine> lines;
};
std::string line_chart(const LineChart& chart);

/// One bar, its parts one after the other; `mark` is a stroke across it where it was to end.
struct ChartBar {
  std::string label;
  std::vector<double> parts;
  std::optional<double> mark{};
};
struct BarChart {
  std::string title;
  std::string unit;
  std::vector<ChartBar> bars;   // all with as many parts
  std::vector<size_t> colours;  // of the parts
};
/// Bars lie; each has its label above it, so that long labels have room.
std::string bar_chart(const BarChart& chart);

/// Names beside their colours, as an HTML list. Lines have the colours 0, 1, 2, ...
std::string chart_legend(const std::vector<std::pair<std::string, size_t>>& names);

}  // namespace phalanx
