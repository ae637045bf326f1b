// Slowest save and slowest step of the run so far.
#include "cluster/warning_time.h"

#include <algorithm>
#include <cmath>

#include "cluster/record_values.h"

namespace phalanx {
namespace {

constexpr int64_t kUnknownSeconds = 180;
constexpr double kGranularitySeconds = 60;

}  // namespace

int64_t warning_seconds(const std::vector<nlohmann::json>& ledger,
                        const std::vector<nlohmann::json>& metrics, int64_t time_limit_seconds) {
  double save = 0;
  double step = 0;
  for (const auto& record : ledger)
    if (is_event(record, "checkpoint"))
      save = std::max(
          {save, number_in(record, "stall_seconds"), number_in(record, "durable_seconds")});
  for (const auto& record : metrics) step = std::max(step, number_in(record, "step_ms") / 1e3);
  const int64_t seconds =
      save == 0 ? kUnknownSeconds
                : static_cast<int64_t>(std::ceil(kGranularitySeconds + 2 * save + step));
  // sbatch takes no more than 65535.
  const int64_t most = time_limit_seconds > 0 ? time_limit_seconds / 2 : int64_t{65535};
  return std::min({seconds, most, int64_t{65535}});
}

double training_minutes(int64_t seconds_left) {
  const auto seconds = static_cast<double>(std::max<int64_t>(seconds_left, 4));
  const double reserve = std::min(60.0, seconds / 4);
  return (seconds - reserve) / 60;
}

}  // namespace phalanx
