// Signal handlers that set the stop flag.
#include "launch/stop_signals.h"

#include <csignal>

#include "core/train/stop_flag.h"

namespace phalanx {
namespace {

// The first signal ends the run after the step, with weights written; the second ends it at once.
extern "C" void request_stop(int signal) {
  stop_requested() = true;
  std::signal(signal, SIG_DFL);
}

}  // namespace

void stop_on_signals() {
  std::signal(SIGINT, request_stop);
  std::signal(SIGTERM, request_stop);
}

}  // namespace phalanx
