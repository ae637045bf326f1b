// Scales, axes, lines, bars.
#include "cluster/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace phalanx {
namespace {

constexpr double kWidth = 440;
constexpr double kHeight = 280;
constexpr double kLeft = 52;
constexpr double kRight = 14;
constexpr double kTop = 12;
constexpr double kBottom = 44;
constexpr size_t kColours = 12;

/// Values to a coordinate between `from` and `to`.
struct Scale {
  double low = 0;
  double high = 1;
  bool logarithmic = false;
  double from = 0;
  double to = 1;

  double operator()(double value) const {
    const auto f = [&](double v) { return logarithmic ? std::log(v) : v; };
    return from + (f(value) - f(low)) / (f(high) - f(low)) * (to - from);
  }
};

/// 1, 2 or 5 times a power of ten, at least `value`.
double round_up(double value) {
  const double power = std::pow(10.0, std::floor(std::log10(value)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (factor * power >= value * (1 - 1e-9)) return factor * power;
  return 10 * power;
}

std::vector<double> linear_ticks(double high) {
  const double step = round_up(high / 5);
  std::vector<double> ticks;
  for (int i = 0; i * step <= high * (1 + 1e-9); ++i) ticks.push_back(i * step);
  return ticks;
}

/// 1, 2, 5 per decade; over many decades the powers alone.
std::vector<double> logarithmic_ticks(double low, double high) {
  std::vector<double> ticks;
  const bool many = high / low > 2000;
  for (int exponent = static_cast<int>(std::floor(std::log10(low)));
       std::pow(10.0, exponent) <= high; ++exponent)
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double tick = factor * std::pow(10.0, exponent);
      if (tick >= low && tick <= high && (factor == 1.0 || !many)) ticks.push_back(tick);
    }
  return ticks;
}

std::string label(double x, double y, const char* anchor, const std::string& text,
                  const char* more = "") {
  return fmt::format(
      "<text class=\"ink\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y,
      anchor, more, xml_text(text));
}

std::string stroke(const char* kind, double x1, double y1, double x2, double y2) {
  return fmt::format(
      "<line class=\"{}\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>\n", kind, x1,
      y1, x2, y2);
}

std::string open_svg(const std::string& title, double height) {
  return fmt::format(
      "<svg viewBox=\"0 0 {:.0f} {:.0f}\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\">\n"
      "<title>{}</title>\n",
      kWidth, height, xml_text(title));
}

/// The least and the greatest of all values; of y with bands.
struct Extent {
  double low = INFINITY;
  double high = -INFINITY;
  void add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

Scale scale_of(const Axis& axis, Extent extent, double from, double to) {
  for (const double tick : axis.ticks) extent.add(tick);
  if (!(extent.low <= extent.high)) extent = {1, 1};
  if (!axis.logarithmic) return {0, extent.high > 0 ? extent.high * 1.06 : 1, false, from, to};
  // Room around, and never an empty range.
  return {extent.low / 1.15, extent.high * 1.15, true, from, to};
}

std::string draw_axes(const LineChart& chart, const Scale& x, const Scale& y) {
  std::string svg;
  const auto ticks = [](const Axis& axis, const Scale& scale) {
    if (!axis.ticks.empty()) return axis.ticks;
    auto found =
        scale.logarithmic ? logarithmic_ticks(scale.low, scale.high) : linear_ticks(scale.high);
    // Between two round numbers there may be none.
    if (found.size() < 2) found = {scale.low * 1.15, scale.high / 1.15};
    return found;
  };
  for (const double tick : ticks(chart.y, y)) {
    svg += stroke("grid", kLeft, y(tick), kWidth - kRight, y(tick));
    svg += label(kLeft - 6, y(tick) + 4, "end", short_number(tick));
  }
  double last = -INFINITY;
  for (const double tick : ticks(chart.x, x)) {
    if (x(tick) - last < 24) continue;  // its label would touch the one before
    last = x(tick);
    svg += stroke("grid", x(tick), kTop, x(tick), kHeight - kBottom);
    svg += label(x(tick), kHeight - kBottom + 17, "middle", short_number(tick));
  }
  svg += stroke("axis", kLeft, kHeight - kBottom, kWidth - kRight, kHeight - kBottom);
  svg += label((kLeft + kWidth - kRight) / 2, kHeight - 8, "middle", chart.x.title);
  const double middle = (kTop + kHeight - kBottom) / 2;
  return svg + label(12, middle, "middle", chart.y.title,
                     fmt::format(" transform=\"rotate(-90 12 {:.1f})\"", middle).c_str());
}

std::string draw_line(const ChartLine& line, size_t colour, const Scale& x, const Scale& y) {
  std::string path, upper, lower, markers;
  for (const ChartPoint& point : line.points) {
    path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : " L", x(point.x), y(point.y));
    upper += fmt::format(" {:.1f},{:.1f}", x(point.x), y(point.high));
    markers += fmt::format("<circle class=\"fill s{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\"/>\n",
                           colour, x(point.x), y(point.y));
    if (point.low < point.high)  // alone it has no band
      markers += fmt::format(
          "<line class=\"line s{0}\" x1=\"{1:.1f}\" y1=\"{2:.1f}\" "
          "x2=\"{1:.1f}\" y2=\"{3:.1f}\"/>\n",
          colour, x(point.x), y(point.low), y(point.high));
  }
  for (auto point = line.points.rbegin(); point != line.points.rend(); ++point)
    lower += fmt::format(" {:.1f},{:.1f}", x(point->x), y(point->low));
  if (path.empty()) return "";
  if (line.dashed) return fmt::format("<path class=\"ideal\" d=\"{}\"/>\n", path);
  return fmt::format(
      "<polygon class=\"band s{0}\" points=\"{1}{2}\"/>\n"
      "<path class=\"line s{0}\" d=\"{3}\"/>\n{4}",
      colour, upper.substr(1), lower, path, markers);
}

}  // namespace

std::string xml_text(const std::string& text) {
  std::string safe;
  for (const char c : text) switch (c) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      case '"':
        safe += "&quot;";
        break;
      default:
        // XML has no other control characters than these; a log line may.
        if (static_cast<unsigned char>(c) >= 32 || c == '\n' || c == '\t') safe += c;
    }
  return safe;
}

std::string short_number(double value) {
  constexpr const char* kLetters[] = {"", "k", "M", "G", "T", "P", "E"};
  size_t letter = 0;
  while (std::abs(value) >= 999.5 && letter + 1 < std::size(kLetters)) {
    value /= 1000;
    ++letter;
  }
  return fmt::format("{:.3g}{}", value, kLetters[letter]);
}

std::string line_chart(const LineChart& chart) {
  Extent of_x, of_y;
  for (const ChartLine& line : chart.lines)
    for (const ChartPoint& point : line.points) {
      of_x.add(point.x);
      for (const double value : {point.y, point.low, point.high}) of_y.add(value);
    }
  const Scale x = scale_of(chart.x, of_x, kLeft, kWidth - kRight);
  const Scale y = scale_of(chart.y, of_y, kHeight - kBottom, kTop);
  std::string svg = open_svg(chart.title, kHeight) + draw_axes(chart, x, y);
  size_t colour = 0;
  for (const ChartLine& line : chart.lines) {
    svg += draw_line(line, colour % kColours, x, y);
    colour += line.dashed ? 0 : 1;
  }
  return svg + "</svg>\n";
}

std::string bar_chart(const BarChart& chart) {
  constexpr double kRow = 46;
  constexpr double kThick = 18;
  constexpr double kMargin = 8;
  Extent extent;
  extent.add(0);
  for (const ChartBar& bar : chart.bars) {
    double sum = 0;
    for (const double part : bar.parts) sum += part;
    extent.add(std::max(sum, bar.mark.value_or(0)));
  }
  const double bottom = kTop + kRow * static_cast<double>(chart.bars.size());
  const Scale x{0, extent.high > 0 ? extent.high : 1, false, kMargin, kWidth - 2 * kMargin};
  std::string svg = open_svg(chart.title, bottom + kBottom);
  for (const double tick : linear_ticks(x.high)) {
    svg += stroke("grid", x(tick), kTop, x(tick), bottom);
    svg += label(x(tick), bottom + 16, tick == 0 ? "start" : "middle", short_number(tick));
  }
  for (size_t i = 0; i < chart.bars.size(); ++i) {
    const ChartBar& bar = chart.bars[i];
    const double y = kTop + kRow * static_cast<double>(i) + 20;
    svg += label(kMargin + 4, y - 7, "start", bar.label);
    double begin = 0;
    for (size_t part = 0; part < bar.parts.size(); ++part) {
      const double end = begin + bar.parts[part];
      if (bar.parts[part] > 0)
        svg += fmt::format(
            "<rect class=\"fill s{}\" x=\"{:.2f}\" y=\"{:.1f}\" width=\"{:.2f}\" "
            "height=\"{:.0f}\"/>\n",
            chart.colours[part] % kColours, x(begin), y, x(end) - x(begin), kThick);
      begin = end;
    }
    if (bar.mark) svg += stroke("mark", x(*bar.mark), y - 3, x(*bar.mark), y + kThick + 3);
  }
  svg += stroke("axis", kMargin, kTop, kMargin, bottom);
  return svg + label(kWidth / 2, bottom + 36, "middle", chart.unit) + "</svg>\n";
}

std::string chart_legend(const std::vector<std::pair<std::string, size_t>>& names) {
  std::string list = "<ul class=\"legend\">\n";
  for (const auto& [name, colour] : names)
    list += fmt::format(
        "<li><svg viewBox=\"0 0 12 12\" aria-hidden=\"true\" "
        "xmlns=\"http://www.w3.org/2000/svg\"><rect class=\"fill s{}\" "
        "width=\"12\" height=\"12\" rx=\"2\"/></svg>{}</li>\n",
        colour % kColours, xml_text(name));
  return list + "</ul>\n";
}

}  // namespace phalanx
