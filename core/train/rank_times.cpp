// Sums, gathered as rows of numbers.
#include "core/train/rank_times.h"

#include <algorithm>
#include <array>

namespace phalanx {
namespace {

constexpr std::chrono::duration<double> kLongestPause{10};
constexpr int64_t kNumbers = 4;

template <class Value>
nlohmann::ordered_json spread_json(const RankTimesReport& report, const RankPlaces& places,
                                   const Value& value) {
  std::vector<double> means;
  for (const StepTimes& times : report.times)
    means.push_back(value(times) / static_cast<double>(report.steps));
  const auto slowest = std::ranges::max_element(means) - means.begin();
  const double most = means[static_cast<size_t>(slowest)];
  const auto middle = means.begin() + (std::ssize(means) - 1) / 2;
  std::ranges::nth_element(means, middle);
  const double median = *middle;
  return {{"min", std::ranges::min(means)},
          {"median", median},
          {"max", most},
          {"slowest_rank", slowest},
          {"slowest_node", places.node_name_of(static_cast<int>(slowest))}};
}

}  // namespace

void RankTimes::add(const StepTimes& times) {
  if (first_) {
    first_ = false;
    since_ = Clock::now();
    return;
  }
  ++steps_;
  sum_.step += times.step;
  sum_.data += times.data;
  sum_.wait += times.wait;
  sum_.save += times.save;
}

bool RankTimes::is_due() const {
  return steps_ > 0 && Clock::now() - since_ >= pause_;
}

RankTimesReport RankTimes::gather() {
  const std::array<double, kNumbers> own{sum_.step, sum_.data, sum_.wait, sum_.save};
  std::vector<double> all(own.size() * static_cast<size_t>(world_.size()));
  world_.all_gather(cpu_tensor(all.data(), {world_.size() * kNumbers}),
                    cpu_tensor(own.data(), {kNumbers}));
  RankTimesReport report{.times = {}, .steps = steps_};
  for (size_t i = 0; i < all.size(); i += own.size())
    report.times.push_back(
        {.step = all[i], .data = all[i + 1], .wait = all[i + 2], .save = all[i + 3]});
  sum_ = {};
  steps_ = 0;
  pause_ = std::min(2 * pause_, kLongestPause);
  since_ = Clock::now();
  return report;
}

nlohmann::ordered_json rank_times_json(const RankTimesReport& report, int64_t step,
                                       const RankPlaces& places) {
  const auto spread = [&](const auto& value) { return spread_json(report, places, value); };
  return {{"step", step},
          {"steps", report.steps},
          {"compute", spread([](const StepTimes& times) { return times.compute(); })},
          {"wait", spread([](const StepTimes& times) { return times.wait; })},
          {"data", spread([](const StepTimes& times) { return times.data; })},
          {"save", spread([](const StepTimes& times) { return times.save; })}};
}

}  // namespace phalanx
