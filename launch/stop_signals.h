// Signals as requests to stop at the next safe point.
#pragma once

#include <string>
#include <vector>

namespace phalanx {

/// The number of "SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"; 0 of anything else.
int signal_number(const std::string& name);

/// Keeps these five signals from this thread and all that it starts from now on, so that they wait
/// for `stop_on_signals`. To be called before any thread is started, MPI's own among them.
///
/// No handler ever runs: a thread of its own waits for the signals, because matrix products of
/// oneDNN use memory below the stack pointer, which a handler on their thread would overwrite.
void hold_signals();

/// From now on each of these signals sets stop_requested(); the others of the five do what they do
/// by default. A second SIGINT kills, because a person who presses Ctrl-C twice means it; launchers
/// send the others more than once without meaning more. Once per process, after hold_signals.
void stop_on_signals(const std::vector<std::string>& names);

}  // namespace phalanx
