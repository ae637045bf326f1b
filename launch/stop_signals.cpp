// Signal handlers that set the stop flag.
#include "launch/stop_signals.h"

#include <csignal>

#include "core/train/stop_flag.h"

namespace phalanx {
namespace {

extern "C" void request_stop(int signal) {
  stop_requested() = true;
  if (signal == SIGINT) std::signal(signal, SIG_DFL);
}

}  // namespace

int signal_number(const std::string& name) {
  if (name == "SIGTERM") return SIGTERM;
  if (name == "SIGINT") return SIGINT;
  if (name == "SIGUSR1") return SIGUSR1;
  if (name == "SIGUSR2") return SIGUSR2;
  if (name == "SIGHUP") return SIGHUP;
  return 0;
}

void stop_on_signals(const std::vector<std::string>& names) {
  for (const std::string& name : names) std::signal(signal_number(name), request_stop);
}

}  // namespace phalanx
