// What each record says about the time since the one before it.
#include "cluster/run_accounts.h"

#include <algorithm>
#include <cmath>

namespace phalanx {
namespace {

using nlohmann::json;

constexpr char kNoEnd[] = "no end was recorded (killed?)";
constexpr char kHung[] = "hung";
constexpr char kSkipped[] = "skipped steps (not finite)";
constexpr char kQueue[] = "in the queue";

/// Which job wrote a record, and at which of its restarts; empty without Slurm.
std::string writer_of(const json& record) {
  const std::string job = text_of(record, "job");
  return job.empty() ? "" : job + "/" + std::to_string(std::llround(number_of(record, "restart")));
}

bool says_true(const json& record, const char* field) {
  return record.value(field, json()) == json(true);
}

}  // namespace

/// The time since the cursor, which moves.
int64_t RunAccounts::take(int64_t time) {
  if (phase_ == Phase::none) begin_ = cursor_ = time;
  const int64_t taken = std::max<int64_t>(0, time - cursor_);
  cursor_ = std::max(cursor_, time);
  return taken;
}

int64_t RunAccounts::take_all(int64_t time) {
  const int64_t all = pending_ + take(time);
  pending_ = 0;
  return all;
}

void RunAccounts::lose(const std::string& cause, int64_t time) {
  accounts_.lost += time;
  accounts_.lost_by_cause[cause].time += time;
}

void RunAccounts::spend_idle(int64_t time) {
  const int64_t idle = take(time);
  if (phase_ == Phase::paused) {
    accounts_.paused += idle;
    return;
  }
  accounts_.waiting += idle;
  accounts_.waiting_by_cause[idle_cause_].time += idle;
}

void RunAccounts::spend_starting(int64_t time) {
  accounts_.restart += time;
  accounts_.restart_by_cause[cause_].time += time;
}

void RunAccounts::forget_steps_from(int64_t iteration) {
  while (!steps_.empty() && steps_.back().iteration >= iteration) {
    const CountedStep& step = steps_.back();
    accounts_.productive -= step.productive;
    accounts_.data -= step.data;
    lose(cause_, step.productive + step.data);
    steps_.pop_back();
  }
}

void RunAccounts::begin_attempt(const json& record) {
  if (phase_ != Phase::paused) ++accounts_.waiting_by_cause[idle_cause_].count;
  phase_ = Phase::starting;
  ++accounts_.attempts;
  ++accounts_.restart_by_cause[cause_].count;
  writer_ = writer_of(record);
  supervised_ = seen_training_ = seen_run_ = hung_ = false;
}

void RunAccounts::end_attempt(const std::string& cause, bool saved) {
  cause_ = cause;
  idle_cause_ = "after: " + cause;
  accounts_.failures += saved ? 0 : 1;
  ++accounts_.lost_by_cause[cause].count;
}

/// A new start shows that the attempt is gone. It lived at least until its last record.
void RunAccounts::break_off() {
  if (lives()) {
    const int64_t rest = take_all(last_seen_);
    end_attempt(hung_ ? kHung : kNoEnd, false);
    lose(cause_, rest);
  }
  if (phase_ != Phase::paused && phase_ != Phase::none) phase_ = Phase::idle;
}

void RunAccounts::submitted(int64_t time) {
  if (lives() || phase_ == Phase::ending) return;  // for what comes after the attempt
  spend_idle(time);
  if (phase_ != Phase::idle) idle_cause_ = kQueue;
  phase_ = Phase::idle;
}

void RunAccounts::attempt_begin(int64_t time, const json& record) {
  break_off();
  if (phase_ == Phase::none) {
    idle_cause_ = kQueue;
    take(time - duration_of(record, "waited_seconds"));
    phase_ = Phase::idle;
  }
  spend_idle(time);
  begin_attempt(record);
  supervised_ = true;
}

/// Of two records, in the ledger and in the metrics, `seen` is about this one.
void RunAccounts::training_begins(int64_t time, const json& record, bool& seen) {
  if (phase_ != Phase::starting || seen) {
    break_off();
    spend_idle(std::max(cursor_, time - duration_of(record, "startup_seconds")));
    begin_attempt(record);
  }
  seen = true;
  pending_ += take(time);
  forget_steps_from(std::llround(number_of(record, "step")) + 1);
}

void RunAccounts::step(int64_t time, const json& record) {
  if (!lives() && phase_ != Phase::none) return;  // of old ranks that do not know it yet
  const json found = record.value("seconds", json());
  const json seconds =
      found.is_object() ? found : json{{"step", number_of(record, "step_ms") / 1e3}};
  const int64_t length = duration_of(seconds, "step");
  if (phase_ == Phase::none) {
    take(time - length);
    begin_attempt(record);
  }
  const int64_t all = take_all(time);
  const int64_t step = std::min(length, all);
  if (phase_ == Phase::starting) {
    spend_starting(all - step);
  } else {
    const int64_t save = std::min(duration_of(seconds, "save"), all - step);
    accounts_.checkpoint += save;
    accounts_.other += all - step - save;
  }
  phase_ = Phase::stepping;
  count_step(step, record, seconds);
}

void RunAccounts::count_step(int64_t step, const json& record, const json& seconds) {
  const int64_t iteration = std::llround(number_of(record, "iteration"));
  forget_steps_from(iteration);
  if (says_true(record, "skipped")) {
    lose(kSkipped, step);
    ++accounts_.lost_by_cause[kSkipped].count;
    return;
  }
  const int64_t data = std::min(duration_of(seconds, "data"), step);
  accounts_.productive += step - data;
  accounts_.data += data;
  steps_.push_back({iteration, step - data, data});
  accounts_.step_seconds.push_back(number_of(seconds, "step"));
}

void RunAccounts::validation(int64_t time, const json& record) {
  if (!lives()) return;
  const int64_t taken = take(time);
  const int64_t evaluation = std::min(duration_of(record, "evaluation_seconds"), taken);
  accounts_.evaluation += evaluation;
  pending_ += taken - evaluation;
}

/// The end of the metrics: what was saved after the last step.
void RunAccounts::last_saves(int64_t time, const json& record) {
  if (!lives()) return;
  pending_ += take(time);
  const int64_t save = std::min(duration_of(record, "save_seconds"), pending_);
  accounts_.checkpoint += save;
  pending_ -= save;
}

void RunAccounts::training_end(int64_t time, const json& record) {
  if (!lives() || is_of_an_earlier_attempt(record)) return;
  const std::string reason = text_of(record, "reason");
  const bool saved = reason != "error";
  const int64_t rest = take_all(time);
  end_attempt(reason, saved);
  if (saved)
    accounts_.other += rest;
  else
    lose(reason, rest);
  const bool wanted = reason == "done" || reason == "stop_file";
  // Without a supervisor nothing more is heard of it.
  phase_ = supervised_ ? Phase::ending : wanted ? Phase::paused : Phase::idle;
}

void RunAccounts::attempt_end(int64_t time, const json& record) {
  if (is_of_an_earlier_attempt(record)) return;
  const std::string cause = text_of(record, "cause");
  if (lives()) {
    const bool done = number_of(record, "exit_code", 1) == 0;
    const int64_t rest = take_all(time);
    end_attempt(cause.empty() ? "failed" : cause, done);
    if (done)
      accounts_.other += rest;
    else
      lose(cause_, rest);
    phase_ = done ? Phase::paused : Phase::idle;
  } else if (phase_ == Phase::ending) {
    accounts_.other += take(time);
    phase_ = cause_ == "done" || cause_ == "stop_file" ? Phase::paused : Phase::idle;
    if (phase_ == Phase::idle && !cause.empty()) cause_ = cause;  // the supervisor knows more
    idle_cause_ = "after: " + cause_;
  }
}

void RunAccounts::decision(int64_t time, const json& record) {
  if (lives() || phase_ == Phase::none) return;
  if (phase_ == Phase::ending)
    accounts_.other += take(time);
  else
    spend_idle(time);
  phase_ = text_of(record, "action") == "end" ? Phase::paused : Phase::idle;
}

void RunAccounts::saved(const json& record) {
  if (!says_true(record, "durable")) return;
  ++accounts_.saves;
  accounts_.stall_seconds += std::max(0.0, number_of(record, "stall_seconds"));
  accounts_.durable_seconds += std::max(0.0, number_of(record, "durable_seconds"));
}

/// Old ranks and their supervisor may live on for a while beside a new attempt.
bool RunAccounts::is_of_an_earlier_attempt(const json& record) const {
  const std::string writer = writer_of(record);
  return !writer.empty() && !writer_.empty() && writer != writer_;
}

void RunAccounts::add(const RunEvent& event) {
  const json& record = *event.record;
  const int64_t time = event.time;
  if (event.kind == "submitted") submitted(time);
  if (event.kind == "attempt_begin") attempt_begin(time, record);
  if (event.kind == "training_begin") training_begins(time, record, seen_training_);
  if (event.kind == "run") training_begins(time, record, seen_run_);
  if (event.kind == "step") step(time, record);
  if (event.kind == "validation") validation(time, record);
  if (event.kind == "end") last_saves(time, record);
  if (event.kind == "training_end") training_end(time, record);
  if (event.kind == "attempt_end") attempt_end(time, record);
  if (event.kind == "decision") decision(time, record);
  if (event.kind == "hang") hung_ = true;
  if (event.kind == "checkpoint" && event.in_ledger) saved(record);
  last_seen_ = std::max(last_seen_, time);
}

void RunAccounts::close(int64_t now) {
  now = std::max(now, last_seen_);
  if (phase_ == Phase::idle) spend_idle(now);
  if (phase_ == Phase::ending) accounts_.other += take(now);
  if (!lives()) return;
  const int64_t rest = take_all(now);
  if (phase_ == Phase::starting)
    spend_starting(rest);
  else
    accounts_.other += rest;
}

}  // namespace phalanx
