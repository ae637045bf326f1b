// Medians, outliers and the table of a test of the machines.
#include "core/train/preflight_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>

namespace phalanx {
namespace {

constexpr double kLeastOfMedian = 0.7;  // for rates
constexpr double kMostOfMedian = 3;     // for latencies
constexpr size_t kOutliersInTable = 3;

/// Of the values that were measured; the greater one in the middle. 0 if there are none.
double upper_median(std::vector<double> values) {
  std::erase(values, 0.0);
  if (values.empty()) return 0;
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::ranges::nth_element(values, middle);
  return *middle;
}
double lower_median(std::vector<double> values) {
  std::erase(values, 0.0);
  if (values.empty()) return 0;
  const auto middle = values.begin() + (std::ssize(values) - 1) / 2;
  std::ranges::nth_element(values, middle);
  return *middle;
}

/// One kind of figure of nodes.
struct Rate {
  double NodeMeasure::*value;
  const char* name;  // in the table
  const char* text;  // what a slow node does: "multiplies matrices at"
  const char* unit;
};
constexpr std::array<Rate, 3> kRates{{
    {&NodeMeasure::gflops, "matrix products, one rank", "multiplies matrices at", "GFLOP/s"},
    {&NodeMeasure::copy_gbps, "memory copies, one rank", "copies memory at", "GB/s"},
    {&NodeMeasure::disk_gbps, "run folder, one node", "writes the run folder at", "GB/s"},
}};

template <class Item, class Value>
std::vector<double> values_of(const std::vector<Item>& items, Value Item::*value) {
  std::vector<double> values;
  for (const Item& item : items) values.push_back(item.*value);
  return values;
}

void add_slow_nodes(std::vector<std::string>& outliers, const PreflightReport& report) {
  for (const Rate& rate : kRates) {
    const double median = upper_median(values_of(report.nodes, rate.value));
    for (const NodeMeasure& node : report.nodes) {
      const double value = node.*rate.value;
      if (value == 0 || value >= kLeastOfMedian * median) continue;
      const std::string rank =
          rate.value == &NodeMeasure::gflops ? fmt::format(" (rank {})", node.slowest_rank) : "";
      outliers.push_back(fmt::format("{}{} {} {:.3g} {}, {:.0f} % of the median {:.3g}", node.node,
                                     rank, rate.text, value, rate.unit, 100 * value / median,
                                     median));
    }
  }
}

/// Names nodes of whose links most are slow, and the other slow links.
void add_slow_links(std::vector<std::string>& outliers, const PreflightReport& report,
                    const std::function<bool(const LinkMeasure&)>& is_slow,
                    const std::function<std::string(const LinkMeasure&)>& figures) {
  std::vector<int> links(report.nodes.size());
  std::vector<int> slow(report.nodes.size());
  for (const LinkMeasure& link : report.links)
    for (const int end : {link.a, link.b}) {
      ++links[static_cast<size_t>(end)];
      slow[static_cast<size_t>(end)] += is_slow(link) ? 1 : 0;
    }
  const auto blamed = [&](int node) {
    const auto i = static_cast<size_t>(node);
    return links[i] > 1 && 2 * slow[i] > links[i];
  };
  const auto name = [&](int node) { return report.nodes[static_cast<size_t>(node)].node; };
  for (int node = 0; node < static_cast<int>(report.nodes.size()); ++node)
    if (blamed(node))
      outliers.push_back(fmt::format("{}: {} of its {} links that were tested are slow", name(node),
                                     slow[static_cast<size_t>(node)],
                                     links[static_cast<size_t>(node)]));
  for (const LinkMeasure& link : report.links)
    if (is_slow(link) && !blamed(link.a) && !blamed(link.b))
      outliers.push_back(
          fmt::format("the link between {} and {} {}", name(link.a), name(link.b), figures(link)));
}

std::string table_row(const char* name, std::vector<double> values, const char* unit) {
  std::erase(values, 0.0);
  if (values.empty()) return "";
  return fmt::format("\n   {:<28}{:>10.4g}{:>10.4g}{:>10.4g}  {}", name, std::ranges::min(values),
                     upper_median(values), std::ranges::max(values), unit);
}

}  // namespace

std::vector<std::string> preflight_outliers(const PreflightReport& report) {
  std::vector<std::string> outliers;
  add_slow_nodes(outliers, report);
  const double rate = upper_median(values_of(report.links, &LinkMeasure::gbps));
  add_slow_links(
      outliers, report,
      [&](const LinkMeasure& link) { return link.gbps > 0 && link.gbps < kLeastOfMedian * rate; },
      [&](const LinkMeasure& link) {
        return fmt::format("carries {:.3g} GB/s each way, {:.0f} % of the median {:.3g}", link.gbps,
                           100 * link.gbps / rate, rate);
      });
  const double latency = lower_median(values_of(report.links, &LinkMeasure::microseconds));
  add_slow_links(
      outliers, report,
      [&](const LinkMeasure& link) { return link.microseconds > kMostOfMedian * latency; },
      [&](const LinkMeasure& link) {
        return fmt::format("takes {:.3g} us for a short message, the median is {:.3g}",
                           link.microseconds, latency);
      });
  return outliers;
}

std::string preflight_table(const PreflightReport& report,
                            const std::vector<std::string>& outliers) {
  std::string text =
      fmt::format("preflight of {} node(s), {:.1f} s\n   {:<28}{:>10}{:>10}{:>10}",
                  report.nodes.size(), report.seconds, "", "least", "median", "most");
  for (const Rate& rate : kRates)
    text += table_row(rate.name, values_of(report.nodes, rate.value), rate.unit);
  text += table_row("links, each way", values_of(report.links, &LinkMeasure::gbps), "GB/s");
  text +=
      table_row("links, short messages", values_of(report.links, &LinkMeasure::microseconds), "us");
  for (size_t i = 0; i < std::min(outliers.size(), kOutliersInTable); ++i)
    text += "\n   SLOW: " + outliers[i];
  if (outliers.size() > kOutliersInTable)
    text += fmt::format("; and {} more, see ledger.jsonl", outliers.size() - kOutliersInTable);
  return text;
}

nlohmann::ordered_json preflight_json(const PreflightReport& report,
                                      const std::vector<std::string>& outliers) {
  nlohmann::ordered_json nodes = nlohmann::ordered_json::array();
  for (const NodeMeasure& node : report.nodes)
    nodes.push_back({{"node", node.node},
                     {"gflops", node.gflops},
                     {"copy_gbps", node.copy_gbps},
                     {"disk_gbps", node.disk_gbps},
                     {"link_gbps", node.link_gbps}});
  return {{"nodes", nodes}, {"outliers", outliers}, {"seconds", report.seconds}};
}

std::vector<LinkRound> link_rounds(int num_nodes) {
  std::vector<LinkRound> rounds;
  for (int distance = 1; distance <= num_nodes / 2; distance *= 2) {
    // Going on by the distance passes through cycles of nodes. Links of a cycle alternate between
    // two rounds; the last one of a cycle of odd length needs a third.
    std::array<LinkRound, 3> parts;
    std::vector<bool> seen(static_cast<size_t>(num_nodes));
    for (int first = 0; first < num_nodes; ++first) {
      int node = first;
      for (size_t place = 0; !seen[static_cast<size_t>(node)]; ++place) {
        seen[static_cast<size_t>(node)] = true;
        const int next = (node + distance) % num_nodes;
        const bool twice = next == first && place == 1;  // a cycle of two: one link
        if (!twice) {
          const bool odd_end = next == first && place % 2 == 0;
          parts[odd_end ? 2 : place % 2].pairs.emplace_back(node, next);
        }
        node = next;
      }
    }
    for (LinkRound& part : parts) {
      part.distance = distance;
      if (!part.pairs.empty()) rounds.push_back(part);
    }
  }
  return rounds;
}

}  // namespace phalanx
