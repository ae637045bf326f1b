// Clocks of steps and of the process.
#include "core/train/step_times.h"

#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>

namespace phalanx {

double StepClock::waited() const {
  double seconds = 0;
  for (const auto* group : {&groups_.world, &groups_.tp, &groups_.cp, &groups_.dp, &groups_.dp_cp,
                            &groups_.pp, &groups_.ep, &groups_.expert_tp, &groups_.expert_dp})
    seconds += (*group)->waiting_seconds();
  return seconds;
}

void StepClock::begin_step() {
  times_ = {.save = save_};
  save_ = 0;
  waited_before_ = waited();
  begin_ = Clock::now();
}

void StepClock::data_is_there() {
  times_.data = seconds_since(begin_);
}

StepTimes StepClock::end_step() {
  times_.step = seconds_since(begin_);
  times_.wait = waited() - waited_before_;
  times_.ended = unix_seconds();
  return times_;
}

double unix_seconds() {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  return now.count();
}

double process_seconds() {
  // Field 22 of stat is the start in clock ticks since the machine started; the second field, a
  // name in brackets, may hold anything.
  std::stringstream stat;
  stat << std::ifstream("/proc/self/stat").rdbuf();
  std::istringstream fields(stat.str().substr(stat.str().rfind(')') + 1));
  std::string skipped;
  for (int field = 3; field < 22; ++field) fields >> skipped;
  double ticks = 0;
  double uptime = 0;
  if (!(fields >> ticks) || !(std::ifstream("/proc/uptime") >> uptime)) return 0;
  return std::max(0.0, uptime - ticks / static_cast<double>(sysconf(_SC_CLK_TCK)));
}

}  // namespace phalanx
