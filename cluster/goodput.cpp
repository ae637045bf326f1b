// From accounts of time to figures, and the interval between saves that they recommend.
#include "cluster/goodput.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cluster/run_accounts.h"

namespace phalanx {
namespace {

double seconds_of(int64_t nanoseconds) {
  return static_cast<double>(nanoseconds) * 1e-9;
}

/// The most expensive first, without those that cost nothing.
std::vector<TimeByCause> by_cause(const CauseAccounts& accounts) {
  std::vector<TimeByCause> causes;
  for (const auto& [cause, account] : accounts)
    if (account.time > 0) causes.push_back({cause, seconds_of(account.time), account.count});
  std::ranges::stable_sort(causes, std::ranges::greater(), &TimeByCause::seconds);
  return causes;
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::ranges::nth_element(values, middle);
  return *middle;
}

/// Daly's interval, which is Young's where a save is short beside the time between failures.
double daly_interval(double save, double between_failures) {
  if (save >= 2 * between_failures) return between_failures;
  const double part = save / (2 * between_failures);
  return std::sqrt(2 * save * between_failures) * (1 + std::sqrt(part) / 3 + part / 9) - save;
}

void recommend(Goodput& result, const TimeAccounts& accounts) {
  const double between = result.mean_time_between_failures;
  if (accounts.saves == 0 || between <= 0) return;
  const auto saves = static_cast<double>(accounts.saves);
  result.save_seconds = accounts.stall_seconds / saves;
  result.young_interval = std::sqrt(2 * result.save_seconds * between);
  // One save at a time: the next one would have to wait for it.
  result.save_interval =
      std::max(daly_interval(result.save_seconds, between), accounts.durable_seconds / saves);
  if (result.step_seconds > 0)
    result.save_interval_steps =
        std::max<int64_t>(1, std::llround(result.save_interval / result.step_seconds));
}

std::string duration_text(double seconds) {
  if (seconds < 1) return fmt::format("{:.0f} ms", seconds * 1e3);
  if (seconds < 120) return fmt::format("{:.1f} s", seconds);
  if (seconds < 7200) return fmt::format("{:.1f} min", seconds / 60);
  if (seconds < 48.0 * 3600) return fmt::format("{:.1f} h", seconds / 3600);
  return fmt::format("{:.1f} days", seconds / 86400);
}

void add_causes(std::string& text, const std::vector<TimeByCause>& causes) {
  constexpr size_t kMost = 5;
  for (size_t i = 0; i < std::min(causes.size(), kMost); ++i)
    text += fmt::format("      {:>10}  {}{}\n", duration_text(causes[i].seconds), causes[i].cause,
                        causes[i].count > 1 ? fmt::format(" ({} times)", causes[i].count) : "");
  if (causes.size() > kMost)
    text += fmt::format("                  and {} more causes\n", causes.size() - kMost);
}

std::string interval_text(const Goodput& goodput) {
  const char* at_least = goodput.no_failure_yet ? "at least " : "";
  std::string text =
      fmt::format("  attempts {}, failures {}; mean time between failures {}{}\n", goodput.attempts,
                  goodput.failures, at_least, duration_text(goodput.mean_time_between_failures));
  if (goodput.save_interval <= 0)
    return text + "  recommended save interval: not known before the first save\n";
  text += fmt::format("  recommended save interval: {}{}", at_least,
                      duration_text(goodput.save_interval));
  if (goodput.save_interval_steps > 0)
    text += fmt::format(", --save-interval {}", goodput.save_interval_steps);
  return text + fmt::format(
                    "\n    (a save stalls training for {}, slower steps beside it not counted; a "
                    "step takes {})\n",
                    duration_text(goodput.save_seconds), duration_text(goodput.step_seconds));
}

}  // namespace

Goodput goodput(const std::vector<nlohmann::json>& ledger,
                const std::vector<nlohmann::json>& metrics, double now) {
  RunAccounts run;
  for (const RunEvent& event : run_timeline(ledger, metrics)) run.add(event);
  run.close(static_cast<int64_t>(now * 1e9));
  const TimeAccounts& accounts = run.accounts();
  Goodput result{.productive = seconds_of(accounts.productive),
                 .lost = seconds_of(accounts.lost),
                 .checkpoint = seconds_of(accounts.checkpoint),
                 .data = seconds_of(accounts.data),
                 .restart = seconds_of(accounts.restart),
                 .waiting = seconds_of(accounts.waiting),
                 .evaluation = seconds_of(accounts.evaluation),
                 .other = seconds_of(accounts.other),
                 .total = seconds_of(run.total()),
                 .paused = seconds_of(accounts.paused),
                 .lost_by_cause = by_cause(accounts.lost_by_cause),
                 .restart_by_cause = by_cause(accounts.restart_by_cause),
                 .waiting_by_cause = by_cause(accounts.waiting_by_cause),
                 .attempts = accounts.attempts,
                 .failures = accounts.failures,
                 .no_failure_yet = accounts.failures == 0,
                 .saves = accounts.saves,
                 .step_seconds = median(accounts.step_seconds)};
  result.mean_time_between_failures = (result.total - result.waiting) /
                                      static_cast<double>(std::max<int64_t>(1, accounts.failures));
  recommend(result, accounts);
  return result;
}

std::string goodput_text(const Goodput& goodput) {
  std::string text = fmt::format("goodput {:.1f} % of {}{}\n", 100 * goodput.goodput(),
                                 duration_text(goodput.total),
                                 goodput.paused > 0 ? fmt::format(" (and {} in which nobody wanted "
                                                                  "it to run)",
                                                                  duration_text(goodput.paused))
                                                    : "");
  const auto row = [&](const char* name, double seconds,
                       const std::vector<TimeByCause>& causes = {}) {
    text += fmt::format("  {:<12}{:>10}  {:5.1f} %\n", name, duration_text(seconds),
                        goodput.total > 0 ? 100 * seconds / goodput.total : 0);
    add_causes(text, causes);
  };
  row("productive", goodput.productive);
  row("lost", goodput.lost, goodput.lost_by_cause);
  row("checkpoint", goodput.checkpoint);
  row("data", goodput.data);
  row("restart", goodput.restart, goodput.restart_by_cause);
  row("waiting", goodput.waiting, goodput.waiting_by_cause);
  row("evaluation", goodput.evaluation);
  row("other", goodput.other);
  return text + interval_text(goodput);
}

}  // namespace phalanx
