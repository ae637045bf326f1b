// Means per node and stage, and their medians.
#include "core/train/node_speed.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>

namespace phalanx {
namespace {

constexpr double kPercentThatMatters = 5;
constexpr double kSilence = 600;  // seconds between two sentences about one node
constexpr double kNever = -std::numeric_limits<double>::infinity();

struct Mean {
  double sum = 0;
  int64_t count = 0;
  double value() const { return sum / static_cast<double>(count); }
};

double lower_median(std::vector<double> values) {
  const auto middle = values.begin() + (std::ssize(values) - 1) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

std::optional<SlowNode> slowest_node(const std::vector<StepTimes>& times, int64_t steps,
                                     const RankPlaces& places) {
  std::map<int, std::map<int, Mean>> stages;  // stage, node
  double step_seconds = 0;
  for (size_t rank = 0; rank < times.size(); ++rank) {
    Mean& mean = stages[places.stage[rank]][places.node[rank]];
    mean.sum += times[rank].compute() / static_cast<double>(steps);
    ++mean.count;
    step_seconds = std::max(step_seconds, times[rank].step / static_cast<double>(steps));
  }
  std::optional<SlowNode> slowest;
  for (const auto& [stage, nodes] : stages) {
    if (nodes.size() < 2) continue;
    std::vector<double> means;
    for (const auto& [node, mean] : nodes) means.push_back(mean.value());
    const double median = lower_median(means);
    for (const auto& [node, mean] : nodes)
      if (!slowest || mean.value() - median > slowest->excess)
        slowest = SlowNode{.node = node, .excess = mean.value() - median};
  }
  if (slowest && step_seconds > 0) slowest->percent = 100 * slowest->excess / step_seconds;
  return slowest;
}

std::optional<SlowNode> SlowNodeWatch::look(const std::optional<SlowNode>& slowest, double now) {
  const bool matters = slowest && slowest->percent > kPercentThatMatters;
  const int before = suspect_;
  suspect_ = matters ? slowest->node : -1;
  if (!matters || before != slowest->node) return std::nullopt;
  const auto node = static_cast<size_t>(slowest->node);
  if (node >= told_at_.size()) told_at_.resize(node + 1, kNever);
  if (now - told_at_[node] < kSilence) return std::nullopt;
  told_at_[node] = now;
  return slowest;
}

std::string slow_node_text(const SlowNode& slow, const RankPlaces& places) {
  return fmt::format(
      "{} is slow: its ranks compute {:.3g} ms a step more than the median node's ({:.0f} % of the "
      "step)",
      places.nodes[static_cast<size_t>(slow.node)], slow.excess * 1e3, slow.percent);
}

}  // namespace phalanx
