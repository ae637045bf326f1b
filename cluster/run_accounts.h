// RunAccounts: gives every stretch of a run's time to one account.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cluster/run_timeline.h"

namespace phalanx {

struct CauseAccount {
  int64_t time = 0;
  int64_t count = 0;
};
using CauseAccounts = std::map<std::string, CauseAccount>;

/// Times in nanoseconds, so that the parts sum to the whole to the last digit. For what is in which
/// account see Goodput.
struct TimeAccounts {
  int64_t productive = 0;
  int64_t lost = 0;
  int64_t checkpoint = 0;
  int64_t data = 0;
  int64_t restart = 0;
  int64_t waiting = 0;
  int64_t evaluation = 0;
  int64_t other = 0;
  int64_t paused = 0;
  CauseAccounts lost_by_cause, restart_by_cause, waiting_by_cause;

  int64_t attempts = 0;
  int64_t failures = 0;
  int64_t saves = 0;                 // durable ones
  double stall_seconds = 0;          // sums over them
  double durable_seconds = 0;        //
  std::vector<double> step_seconds;  // of the steps that were not skipped
};

/// Takes a run's records in the order of time. One thread.
class RunAccounts {
 public:
  void add(const RunEvent& event);
  /// Until `now`, if anything still goes on then.
  void close(int64_t now);
  const TimeAccounts& accounts() const { return accounts_; }
  /// From the first record to the last or to `now`, without pauses.
  int64_t total() const { return cursor_ - begin_ - accounts_.paused; }

 private:
  /// A step that counts so far.
  struct CountedStep {
    int64_t iteration = 0;
    int64_t productive = 0;
    int64_t data = 0;
  };
  /// What the run is doing.
  enum class Phase : uint8_t {
    none,      // before the first record
    idle,      // no attempt lives, and one should
    paused,    // no attempt lives, and none should
    starting,  // an attempt, before its first step
    stepping,
    ending  // it has said why it ends
  };

  void submitted(int64_t time);
  void attempt_begin(int64_t time, const nlohmann::json& record);
  void training_begins(int64_t time, const nlohmann::json& record, bool& seen);
  void step(int64_t time, const nlohmann::json& record);
  void count_step(int64_t step, const nlohmann::json& record, const nlohmann::json& seconds);
  void validation(int64_t time, const nlohmann::json& record);
  void last_saves(int64_t time, const nlohmann::json& record);
  void training_end(int64_t time, const nlohmann::json& record);
  void attempt_end(int64_t time, const nlohmann::json& record);
  void decision(int64_t time, const nlohmann::json& record);
  void saved(const nlohmann::json& record);

  int64_t take(int64_t time);
  int64_t take_all(int64_t time);
  void spend_idle(int64_t time);
  void spend_starting(int64_t time);
  void begin_attempt(const nlohmann::json& record);
  void end_attempt(const std::string& cause, bool saved);
  void break_off();
  void lose(const std::string& cause, int64_t time);
  void forget_steps_from(int64_t iteration);
  bool lives() const { return phase_ == Phase::starting || phase_ == Phase::stepping; }
  bool is_of_an_earlier_attempt(const nlohmann::json& record) const;

  TimeAccounts accounts_;
  Phase phase_ = Phase::none;
  int64_t begin_ = 0;
  int64_t cursor_ = 0;     // everything before it is accounted for
  int64_t pending_ = 0;    // of the attempt, before the cursor, but not yet given to an account
  int64_t last_seen_ = 0;  // the last record
  std::string writer_;     // of the attempt
  bool supervised_ = false;
  bool seen_training_ = false;  // its first records in the ledger and in the metrics
  bool seen_run_ = false;
  bool hung_ = false;
  std::string cause_ = "first start";  // why the attempt before ended
  std::string idle_cause_ = "before the first start";
  std::vector<CountedStep> steps_;  // by iteration
};

}  // namespace phalanx
