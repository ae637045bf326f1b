// What becomes of a job when its ranks have ended: why they did, and whether to start them again.
// Pure functions of what was seen, so that every rule can be tested by a table.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cluster/node_failures.h"
#include "cluster/record_values.h"
#include "cluster/slurm.h"

namespace phalanx {

/// Why a start ended, as the ledger says it.
namespace cause {
inline constexpr const char* kDone = "done";
inline constexpr const char* kTimeLimit = "time limit";
inline constexpr const char* kPreempted = "preempted";
inline constexpr const char* kSignal = "signal";
inline constexpr const char* kNodeFailure = "node failure";
inline constexpr const char* kRankCrash = "rank crash";
inline constexpr const char* kHang = "hang";
inline constexpr const char* kDiverged = "diverged";
inline constexpr const char* kError = "error";
inline constexpr const char* kFenced = "fenced";
inline constexpr const char* kUsage = "usage";
inline constexpr const char* kStopFile = "stop file";
inline constexpr const char* kCancelled = "cancelled";
inline constexpr const char* kRequeued = "requeued";  // by somebody, with scontrol
}  // namespace cause

/// The reason in a ledger's "submitted" where a person asked for it.
inline constexpr const char* kSubmittedByUser = "phalanx submit";

/// All that was seen of an end.
struct EndFacts {
  int launcher_exit_code = 0;
  std::string stop_reason;  // of the ledger's training_end: "duration", "signal", ...; or empty
  bool updated = true;      // it says of some step that it changed the weights
  bool stop_file = false;
  bool ended_by_slurm = false;         // SIGTERM came
  bool warned = false;                 // SIGUSR1 came
  int64_t warning_seconds = 0;         // before the time limit, when Slurm sends it
  std::optional<SlurmJob> job;         // as it is now; empty: Slurm did not say
  int64_t restarts = 0;                // of the job when this start began
  std::vector<std::string> nodes;      // of the allocation
  std::vector<std::string> nodes_out;  // of these, down or drained now
};

struct AttemptEnd {
  int exit_code = 0;  // core/exit_codes.h; 128 + n for a signal
  std::string cause;
  std::vector<std::string> nodes_failed;
  bool slurm_requeues = false;  // it has done so already
  bool hopeless = false;        // not one step went well: another start does the same
  std::string text;
};

AttemptEnd judge_end(const EndFacts& facts, const ErrorLines& lines);

/// What may be done.
struct RestartFacts {
  bool requeue = true;                    // else only a new job
  bool saves = true;                      // else every start begins afresh
  int64_t least_nodes = 1;                // to run at all
  std::vector<std::string> usable_nodes;  // of the partition, not out; empty: unknown
};

struct Decision {
  enum class Action : uint8_t { end, requeue, resubmit };
  Action action = Action::end;
  std::string reason;
  std::vector<std::string> excluded;  // nodes, for a resubmission
};
const char* action_name(Decision::Action action);

/// `ledger` has the attempt's own attempt_begin and attempt_end already.
Decision decide_restart(const Records& ledger, const AttemptEnd& end, const RestartFacts& facts);

/// Where the allocation `nodes` has some that failed twice, and enough others are left: to be
/// handed in again without them. Slurm's own requeues do not ask.
std::optional<Decision> leave_failed_nodes(const Records& ledger, const RestartFacts& facts,
                                           const std::vector<std::string>& nodes);

/// Whether the newest two starts were both restarts (of what `phalanx submit` queued last) and
/// neither finished a new step nor left a newer checkpoint.
bool two_restarts_without_progress(const Records& ledger);
/// Nodes that failed in two starts or more, by name.
std::vector<std::string> nodes_failed_twice(const Records& ledger);

}  // namespace phalanx
