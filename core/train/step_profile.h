// StepProfile: `--profile`. Traces of chosen steps as files for people: Chrome's trace format,
// which Perfetto opens, and a table of where the time went.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/trace.h"

namespace phalanx {

/// Steps [first, last], counted from 1.
struct StepRange {
  int64_t first = 0;
  int64_t last = 0;
};
/// "5" or "5-7". Throws UsageError for anything else.
StepRange parse_step_range(const std::string& text);

/// Whose trace it is.
struct TraceOwner {
  int64_t rank = 0;
  int64_t num_ranks = 1;
  Device device = Device::cpu;
};
/// The events in Chrome's trace format (JSON object form, complete events, microseconds): one
/// process per rank, one line each for phases, ops, communication and the device.
std::string chrome_trace(const std::vector<TraceEvent>& events, const TraceOwner& owner);
/// Ops and collectives by total time: calls, seconds, share, FLOP/s and bytes/s where known.
std::string profile_table(const std::vector<TraceEvent>& events);

class StepProfile {
 public:
  /// Writes FOLDER/rank_00003.json and .txt after the last of `steps`.
  StepProfile(const StepRange& steps, std::string folder, const TraceOwner& owner,
              Backend& backend);

  /// Around each step, on the thread that computes.
  void begin_step(int64_t step);
  void end_step(int64_t step);
  /// Writes what was recorded, if the run ends before the last of the steps.
  void finish();
  /// The folder, once the files are there.
  const std::optional<std::string>& written() const { return written_; }

 private:
  StepRange steps_;
  std::string folder_;
  TraceOwner owner_;
  Backend& backend_;
  std::unique_ptr<Trace> trace_;
  std::optional<TraceRange> step_range_;
  std::optional<std::string> written_;
};

}  // namespace phalanx
