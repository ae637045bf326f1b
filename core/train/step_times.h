// Where the time of a rank's steps goes.
#pragma once

#include <algorithm>
#include <chrono>

#include "parallel/process_groups.h"

namespace phalanx {

/// Seconds of one step, or sums over several. `step` is from asking for the batch to the end of the
/// update; checkpoints are saved between steps and not part of it.
struct StepTimes {
  double step = 0;
  double data = 0;   // waiting for the batch
  double wait = 0;   // exposed communication, all groups
  double save = 0;   // training stood still for checkpoints since the step before
  double ended = 0;  // when, in seconds since 1970

  /// The rest. What other programs take from the processor is in it. With NCCL the host never waits
  /// for other ranks, so that their slowness is in it too.
  double compute() const { return std::max(0.0, step - data - wait); }
};

/// Measures them. One thread, the one that calls the groups' collectives. Does not allocate.
class StepClock {
 public:
  explicit StepClock(const ProcessGroups& groups) : groups_(groups) {}

  void begin_step();
  void data_is_there();
  /// Ends the step.
  StepTimes end_step();

  /// Time on checkpoints, between steps.
  void begin_save() { save_begin_ = Clock::now(); }
  void end_save() { save_ += seconds_since(save_begin_); }
  /// On checkpoints since the last step.
  double save_seconds() const { return save_; }

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds_since(Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }
  double waited() const;

  const ProcessGroups& groups_;
  Clock::time_point begin_;
  Clock::time_point save_begin_;
  double waited_before_ = 0;
  double save_ = 0;
  StepTimes times_;  // of the step under way
};

/// Seconds since 1970.
double unix_seconds();
/// For how long this process has lived; 0 where the system does not say.
double process_seconds();

}  // namespace phalanx
