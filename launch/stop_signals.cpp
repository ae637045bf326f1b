// A thread that takes the signals nobody else is given.
#include "launch/stop_signals.h"

#include <pthread.h>

#include <algorithm>
#include <csignal>
#include <thread>

#include "core/train/stop_flag.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr const char* kNames[] = {"SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"};

sigset_t all_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const char* name : kNames) sigaddset(&set, signal_number(name));
  return set;
}

/// What the signal would do to a program that does not know it.
void act_by_default(int signal) {
  std::signal(signal, SIG_DFL);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  std::raise(signal);
}

void take_signals(const std::vector<int>& stopping) {
  const sigset_t set = all_signals();
  bool interrupted = false;
  for (int signal = 0; sigwait(&set, &signal) == 0;) {
    const bool stops = std::ranges::find(stopping, signal) != stopping.end();
    if (!stops || (signal == SIGINT && interrupted)) act_by_default(signal);
    interrupted = interrupted || signal == SIGINT;
    stop_requested() = true;
  }
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

void hold_signals() {
  const sigset_t set = all_signals();
  const int code = pthread_sigmask(SIG_BLOCK, &set, nullptr);
  check(code == 0, "cannot block signals: error ", code);
}

void stop_on_signals(const std::vector<std::string>& names) {
  std::vector<int> stopping;
  for (const std::string& name : names) stopping.push_back(signal_number(name));
  std::thread(take_signals, stopping).detach();  // it waits until the process ends
}

}  // namespace phalanx
