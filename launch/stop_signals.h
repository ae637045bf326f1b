// Signals as requests to stop at the next safe point.
#pragma once

#include <string>
#include <vector>

namespace phalanx {

/// The number of "SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"; 0 of anything else.
int signal_number(const std::string& name);

/// From now on each of these signals sets stop_requested(). A second SIGINT kills, because a person
/// who presses Ctrl-C twice means it; launchers send the others more than once without meaning
/// more.
void stop_on_signals(const std::vector<std::string>& names);

}  // namespace phalanx
