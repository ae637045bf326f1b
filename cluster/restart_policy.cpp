// The rules of ends and restarts.
#include "cluster/restart_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "cluster/run_progress.h"
#include "core/exit_codes.h"

namespace phalanx {
namespace {

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::ranges::find(names, name) != names.end();
}

void add_names(std::vector<std::string>& names, const std::vector<std::string>& more) {
  for (const std::string& name : more)
    if (!contains(names, name)) names.push_back(name);
}

/// The ranks' own exit code where it is known: a launcher gives that of the ranks it killed. srun
/// gives 0 when a node was lost and the rest did not end in time, so 0 counts only where the
/// trainer itself wrote that it came to its end.
int exit_code_of(const EndFacts& facts, const ErrorLines& lines) {
  // Without checkpoints a run that was stopped ends with 0 too.
  if (facts.launcher_exit_code == 0 && !facts.stop_reason.empty())
    return facts.stop_reason == "done" ? kExitDone : kExitStopped;
  if (lines.rank_exit_code()) return *lines.rank_exit_code();
  return facts.launcher_exit_code == 0 ? kExitFailed : facts.launcher_exit_code;
}

bool over_time(const EndFacts& facts, const ErrorLines& lines) {
  if (lines.slurm_reason() == "TIME LIMIT") return true;
  if (!facts.job || !facts.ended_by_slurm) return false;
  return facts.job->reason == "TimeLimit" || facts.job->state == "TIMEOUT" ||
         (facts.job->time_limit_seconds > 0 &&
          facts.job->run_seconds >= facts.job->time_limit_seconds);
}

/// The cause where Slurm ended the job, and "" where it did not.
std::string slurm_cause(const EndFacts& facts, const ErrorLines& lines, bool requeued) {
  const bool lost = !lines.lost_nodes().empty() || lines.slurm_reason() == "NODE FAILURE";
  if (requeued && (lost || !facts.nodes_out.empty())) return cause::kNodeFailure;
  if ((facts.job && facts.job->preempted) || lines.slurm_reason() == "PREEMPTION")
    return cause::kPreempted;
  if (over_time(facts, lines)) return cause::kTimeLimit;
  if (requeued) return cause::kRequeued;
  if (lost) return cause::kNodeFailure;
  // A controller that does not answer would queue it again by itself after a failure of its own.
  const bool ends = !facts.job || facts.job->state != "RUNNING";
  if (facts.ended_by_slurm && ends && !facts.nodes_out.empty()) return cause::kNodeFailure;
  // Somebody's scancel: to start it again would be against their will.
  return facts.ended_by_slurm && ends ? cause::kCancelled : "";
}

/// Whether the signal that came was Slurm's, ahead of the time limit.
bool warned_of_limit(const EndFacts& facts) {
  constexpr int64_t kGranularity = 90;  // Slurm sends it up to a minute early; saving takes time
  return facts.warned && facts.job && facts.job->time_limit_seconds > 0 &&
         facts.job->time_limit_seconds - facts.job->run_seconds <=
             facts.warning_seconds + kGranularity;
}

std::string rank_cause(int exit_code, const EndFacts& facts, const ErrorLines& lines) {
  switch (exit_code) {
    case kExitDiverged:
      return cause::kDiverged;
    case kExitHung:
      return cause::kHang;
    case kExitStopped:
      return facts.stop_reason == "duration" || warned_of_limit(facts) ? cause::kTimeLimit
                                                                       : cause::kSignal;
    default:
      break;
  }
  if (!facts.nodes_out.empty()) return cause::kNodeFailure;
  const bool crashed = exit_code > 128 || !lines.crashed_nodes().empty();
  return crashed ? cause::kRankCrash : cause::kError;
}

std::string cause_of(int exit_code, bool requeued, const EndFacts& facts, const ErrorLines& lines) {
  if (exit_code == kExitUsage) return cause::kUsage;
  if (exit_code == kExitFenced) return cause::kFenced;
  if (facts.stop_file) return cause::kStopFile;
  // srun ends with 0 also where Slurm has ended the ranks.
  const bool cut_off = facts.ended_by_slurm && facts.stop_reason != "done";
  if (exit_code == kExitDone && !requeued && !cut_off) return cause::kDone;
  const std::string of_slurm = slurm_cause(facts, lines, requeued);
  return of_slurm.empty() ? rank_cause(exit_code, facts, lines) : of_slurm;
}

/// The starts since `phalanx submit` queued the run last, with what they came to.
struct Start {
  RunProgress begin;
  RunProgress end;
  bool told = false;  // it wrote its end
};

RunProgress progress_in(const Record& record) {
  return {.finished_step = integer_in(record, "finished_step"),
          .durable_step = integer_in(record, "durable_step", -1)};
}

std::vector<Start> starts_of(const Records& ledger) {
  std::vector<Start> starts;
  for (const Record& record : ledger) {
    if (is_event(record, "submitted") && text_in(record, "reason") == kSubmittedByUser)
      starts.clear();
    const bool begins = is_event(record, "attempt_begin");
    if (!begins && !is_event(record, "attempt_end")) continue;
    // A start whose end was not written came as far as the next one found.
    if (!starts.empty() && !starts.back().told)
      starts.back() = {starts.back().begin, progress_in(record), !begins};
    if (begins) starts.push_back({progress_in(record), progress_in(record)});
  }
  return starts;
}

/// Nodes that the job itself was queued without.
std::vector<std::string> excluded_already(const Records& ledger) {
  std::vector<std::string> excluded;
  for (const Record& record : ledger)
    if (is_event(record, "submitted")) excluded = names_in(record, "excluded");
  return excluded;
}

Decision restart(const Records& ledger, const AttemptEnd& end, const RestartFacts& facts) {
  using Action = Decision::Action;
  Decision decision{.action = facts.requeue ? Action::requeue : Action::resubmit,
                    .reason = end.cause};
  const std::vector<std::string> failed = nodes_failed_twice(ledger);
  const std::vector<std::string> before = excluded_already(ledger);
  decision.excluded = before;
  const bool news =
      std::ranges::any_of(failed, [&](const std::string& node) { return !contains(before, node); });
  if (!news) return decision;
  std::vector<std::string> wanted = before;
  add_names(wanted, failed);
  const auto left = std::ranges::count_if(
      facts.usable_nodes, [&](const std::string& node) { return !contains(wanted, node); });
  const std::string names = fmt::format("{}", fmt::join(failed, ", "));
  if (!facts.usable_nodes.empty() && left < facts.least_nodes) {
    decision.reason += fmt::format(
        "; {} failed twice, but without it only {} nodes are left and the run needs {}: not "
        "excluded",
        names, left, facts.least_nodes);
    return decision;
  }
  decision.action = Action::resubmit;  // a job in the queue cannot be given other nodes to avoid
  decision.excluded = wanted;
  decision.reason += fmt::format("; {} failed twice: excluded", names);
  return decision;
}

}  // namespace

AttemptEnd judge_end(const EndFacts& facts, const ErrorLines& lines) {
  const int code = exit_code_of(facts, lines);
  const bool requeued = facts.job && facts.job->restarts > facts.restarts;
  AttemptEnd end{.exit_code = code,
                 .cause = cause_of(code, requeued, facts, lines),
                 .slurm_requeues = requeued,
                 .hopeless = code == kExitDiverged && !facts.updated,
                 .text = lines.text()};
  const bool broke = end.cause == cause::kNodeFailure || end.cause == cause::kRankCrash ||
                     end.cause == cause::kHang;
  if (broke) {
    add_names(end.nodes_failed, lines.lost_nodes());
    add_names(end.nodes_failed, facts.nodes_out);
    if (end.cause == cause::kHang) add_names(end.nodes_failed, lines.hung_nodes());
    // Ranks that lose a node crash too: only where no node was lost is it the crash's own.
    if (end.nodes_failed.empty()) add_names(end.nodes_failed, lines.crashed_nodes());
  }
  // Names of a message that are no nodes of this job are nothing to exclude.
  std::erase_if(end.nodes_failed,
                [&](const std::string& node) { return !contains(facts.nodes, node); });
  return end;
}

const char* action_name(Decision::Action action) {
  switch (action) {
    case Decision::Action::requeue:
      return "requeue";
    case Decision::Action::resubmit:
      return "resubmit";
    case Decision::Action::end:
      break;
  }
  return "end";
}

bool two_restarts_without_progress(const Records& ledger) {
  const std::vector<Start> starts = starts_of(ledger);
  if (starts.size() < 3) return false;  // the first start is no restart
  return std::all_of(starts.end() - 2, starts.end(),
                     [](const Start& start) { return !start.end.is_beyond(start.begin); });
}

std::vector<std::string> nodes_failed_twice(const Records& ledger) {
  std::map<std::string, int> failures;
  for (const Record& record : ledger) {
    if (is_event(record, "attempt_end"))
      for (const std::string& node : names_in(record, "nodes_failed")) ++failures[node];
    if (is_event(record, "attempt_begin"))
      for (const std::string& node : names_in(record, "previous_nodes_failed")) ++failures[node];
  }
  std::vector<std::string> names;
  for (const auto& [name, count] : failures)
    if (count >= 2) names.push_back(name);
  return names;
}

std::optional<Decision> leave_failed_nodes(const Records& ledger, const RestartFacts& facts,
                                           const std::vector<std::string>& nodes) {
  const std::vector<std::string> failed = nodes_failed_twice(ledger);
  const bool has_some =
      std::ranges::any_of(nodes, [&](const std::string& node) { return contains(failed, node); });
  if (!has_some || facts.usable_nodes.empty()) return std::nullopt;
  RestartFacts asked = facts;
  asked.requeue = true;  // so that only news make it a new job
  const Decision decision = restart(ledger, {.cause = "the job has bad nodes"}, asked);
  if (decision.action != Decision::Action::resubmit) return std::nullopt;
  return decision;
}

Decision decide_restart(const Records& ledger, const AttemptEnd& end, const RestartFacts& facts) {
  using Action = Decision::Action;
  if (end.cause == cause::kDone) return {Action::end, "all steps are done", {}};
  if (end.cause == cause::kUsage)
    return {Action::end, "options or input are wrong: it would end the same way again", {}};
  if (end.cause == cause::kFenced)
    return {Action::end, "a later start of the run owns its folder", {}};
  if (end.cause == cause::kStopFile) return {Action::end, "the run folder has a file STOP", {}};
  if (end.cause == cause::kCancelled) return {Action::end, "the job was cancelled", {}};
  if (end.hopeless)
    return {Action::end,
            "loss or gradient was not finite from the first step on: another start "
            "would not get further. Mend the options; if it fails again, the newest "
            "checkpoint is ruined: move its folder out of RUN/checkpoints, and the one before is "
            "taken",
            {}};
  if (end.slurm_requeues)
    return {Action::requeue, "Slurm has queued it again by itself: " + end.cause, {}};
  const bool was_stopped = end.cause == cause::kTimeLimit || end.cause == cause::kSignal;
  if (was_stopped && !facts.saves)
    return {Action::end,
            end.cause +
                "; with --save-interval 0 nothing was saved and another start would begin "
                "afresh: give it a longer --time",
            {}};
  if (two_restarts_without_progress(ledger))
    return {Action::end,
            "two restarts in a row finished no new step and left no newer checkpoint; the last one "
            "ended with: " +
                end.cause + (end.text.empty() ? "" : " (" + end.text + ")"),
            {}};
  return restart(ledger, end, facts);
}

}  // namespace phalanx
