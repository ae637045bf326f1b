// One loop over the child's errors and our signals.
#include "cluster/supervised_ranks.h"

#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>

#include "cluster/child_process.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr int kTickMilliseconds = 100;  // how late the child's end may be seen

sigset_t taken_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGTERM, SIGINT, SIGUSR1}) sigaddset(&set, number);
  return set;
}

const char* signal_name(int number) {
  return number == SIGTERM ? "SIGTERM" : number == SIGINT ? "SIGINT" : "SIGUSR1";
}

void write_all(const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t bytes = write(STDERR_FILENO, text.data() + done, text.size() - done);
    if (bytes < 0 && errno != EINTR) return;  // a full disk must not end the run
    if (bytes > 0) done += static_cast<size_t>(bytes);
  }
}

/// Takes the whole lines out of `text`.
void pass_lines(std::string& text, ErrorLines& lines) {
  const auto end = text.rfind('\n');
  if (end == std::string::npos) return;
  const std::string whole = text.substr(0, end + 1);
  text.erase(0, end + 1);
  write_all(whole);
  for (size_t at = 0; at < whole.size();) {
    const auto next = whole.find('\n', at);
    lines.add(whole.substr(at, next - at));
    at = next + 1;
  }
}

}  // namespace

SignalInbox::SignalInbox() {
  const sigset_t set = taken_signals();
  check(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0, "cannot block signals");
  descriptor_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  check(descriptor_ >= 0, "cannot take signals: ", std::strerror(errno));
}

SignalInbox::~SignalInbox() {
  close(descriptor_);
  const sigset_t set = taken_signals();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

int SignalInbox::take() {
  signalfd_siginfo info{};
  return read(descriptor_, &info, sizeof(info)) == sizeof(info) ? static_cast<int>(info.ssi_signo)
                                                                : 0;
}

bool SignalInbox::wait_for_end(double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::duration<double>(seconds);
  while (Clock::now() < deadline) {
    pollfd waiting{descriptor_, POLLIN, 0};
    poll(&waiting, 1, kTickMilliseconds);
    if (take() == SIGTERM) return true;
  }
  return false;
}

RanksEnd run_ranks(const std::vector<std::string>& words, SignalInbox& inbox,
                   const RanksWatch& watch) {
  using Clock = std::chrono::steady_clock;
  const std::chrono::duration<double> patience(watch.patience_seconds);
  auto patient_until = Clock::time_point::max();
  ChildProcess child({.words = words, .read_output = false});
  RanksEnd end;
  std::string text;
  while (true) {
    const auto code = child.exit_code();  // before reading: what was written before is then there
    child.read_error(text);
    pass_lines(text, end.lines);
    if (code) {
      if (!text.empty()) pass_lines(text += '\n', end.lines);
      end.exit_code = *code;
      return end;
    }
    if (Clock::now() > patient_until) {
      patient_until = Clock::now() + std::chrono::duration_cast<Clock::duration>(patience);
      if (watch.is_ending()) child.signal_group(SIGKILL);
    }
    std::array<pollfd, 2> sources{{{inbox.descriptor(), POLLIN, 0}, {child.error(), POLLIN, 0}}};
    poll(sources.data(), sources.size(), kTickMilliseconds);
    for (int number = inbox.take(); number != 0; number = inbox.take()) {
      if (number == SIGTERM && !end.ended_by_slurm)
        patient_until = Clock::now() + std::chrono::duration_cast<Clock::duration>(patience);
      end.ended_by_slurm = end.ended_by_slurm || number == SIGTERM;
      end.warned = end.warned || number == SIGUSR1;
      watch.on_signal(signal_name(number));
      child.signal(SIGUSR1);
    }
  }
}

}  // namespace phalanx
