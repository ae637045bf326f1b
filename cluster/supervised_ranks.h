// The launcher of the ranks as a child: its errors read along, signals of Slurm passed on.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cluster/node_failures.h"

namespace phalanx {

/// Keeps SIGTERM, SIGINT and SIGUSR1 from ending this process, so that they can be taken one by
/// one. To be made before anything is started, Slurm's signals may come at any time.
class SignalInbox {
 public:
  SignalInbox();
  ~SignalInbox();
  SignalInbox(const SignalInbox&) = delete;
  SignalInbox& operator=(const SignalInbox&) = delete;

  /// Readable when a signal waits.
  int descriptor() const { return descriptor_; }
  /// The next waiting signal; 0 if none does.
  int take();
  /// Waits up to `seconds` for a SIGTERM.
  bool wait_for_end(double seconds);

 private:
  int descriptor_;
};

struct RanksEnd {
  int exit_code = 0;  // of the launcher
  ErrorLines lines;
  bool ended_by_slurm = false;  // SIGTERM came
  bool warned = false;          // SIGUSR1 came
};

struct RanksWatch {
  /// Told the name of each signal that came.
  std::function<void(const char*)> on_signal;
  /// Whether Slurm is ending the job. Then it kills this process too, by default 30 s (KillWait)
  /// after SIGTERM, while srun waits longer than that for a node that is lost.
  std::function<bool()> is_ending;
  double patience_seconds = 20;  // after SIGTERM, for the launcher to end
};

/// Runs the launcher to its end. What it and the ranks write to standard error goes on to ours, in
/// whole lines. Each signal is passed on to the launcher as SIGUSR1, which srun and mpirun hand to
/// every rank: at SIGTERM they would kill them instead. A launcher that does not end while Slurm
/// ends the job is killed after the patience, so that there is time to say what happened.
RanksEnd run_ranks(const std::vector<std::string>& words, SignalInbox& inbox,
                   const RanksWatch& watch);

}  // namespace phalanx
