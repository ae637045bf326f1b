// Goodput: which part of a run's time became steps that count, where the rest went, and how often
// the run should save, from the records of all its starts.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace phalanx {

/// Time with one cause, in seconds, and how often.
struct TimeByCause {
  std::string cause;
  double seconds = 0;
  int64_t count = 0;
};

/// Seconds, from the run's first record to its last or to `now`. Parts sum to `total`.
struct Goodput {
  double productive = 0;  // steps that count: the weights have them
  double lost = 0;        // steps that were or will be computed again, skipped steps, and what an
                          // attempt did after its last record in metrics.jsonl until it failed
  double checkpoint = 0;  // training stood still for checkpoints
  double data = 0;        // waiting for batches, in steps that count
  double restart = 0;     // from the begin of an attempt to its first step
  double waiting = 0;     // no attempt lived: in the queue, or nobody had started one
  double evaluation = 0;
  double other = 0;  // between steps, ending, and what cannot be told yet
  double total = 0;
  /// After an end that was wanted (all steps done, a stop file, a decision to end) until somebody
  /// started the run again: nobody wanted it to run, so it is not part of `total`.
  double paused = 0;

  std::vector<TimeByCause> lost_by_cause;     // what ended the attempt; the most expensive first
  std::vector<TimeByCause> restart_by_cause;  // what made it start
  std::vector<TimeByCause> waiting_by_cause;

  int64_t attempts = 0;
  int64_t failures = 0;  // attempts that ended without having saved first
  /// Of attempts' time per failure. Without a failure so far: at least this.
  double mean_time_between_failures = 0;
  bool no_failure_yet = true;

  int64_t saves = 0;          // that are durable
  double save_seconds = 0;    // mean stall of one
  double step_seconds = 0;    // median of the steps that count
  double young_interval = 0;  // seconds of training between saves; 0: nothing is known of saves yet
  double save_interval = 0;   // what to take
  int64_t save_interval_steps = 0;

  double goodput() const { return total > 0 ? productive / total : 0; }
};

/// From ledger.jsonl and metrics.jsonl (core/train/ledger.h: read_ledger, read_records), in the
/// order of the files. `now` in seconds since 1970: until then an attempt that has not told its end
/// is taken to live and a job without one to wait; give the time of the last record if the run is
/// known to be dead.
///
/// An attempt without an end ends with its last record before the next one begins. Clocks of nodes
/// differ: a start that would begin before the end of the one before it has its times shifted
/// behind. Old ranks that live on for a while beside a new start add no time.
///
/// The save interval minimises the time lost to saves and failures. With C the stall of a save and
/// M the mean time between failures it is sqrt(2 C M) (J. W. Young, A first order approximation to
/// the optimum checkpoint interval, CACM 17(9), 1974), or where C is not much less than M the
/// higher order sqrt(2 C M) (1 + sqrt(C / 2M) / 3 + C / 18M) - C, and M from C = 2M on (J. T. Daly,
/// A higher order estimate of the optimum checkpoint interval for restart dumps, FGCS 22(3), 2006);
/// at least the time that one save takes until it is durable. C is the stall alone: that steps are
/// slower while a save is being written is not in it.
Goodput goodput(const std::vector<nlohmann::json>& ledger,
                const std::vector<nlohmann::json>& metrics, double now);

/// A table for people.
std::string goodput_text(const Goodput& goodput);

}  // namespace phalanx
