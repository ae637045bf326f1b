// What became of a point, from the files in its run folder.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cluster/slurm.h"
#include "cluster/study_plan.h"

namespace phalanx {

enum class PointState : uint8_t { impossible, waiting, queued, running, done, failed, unknown };
template <>
struct EnumNames<PointState> {
  static constexpr std::pair<PointState, std::string_view> table[] = {
      {PointState::impossible, "impossible"},
      {PointState::waiting, "not queued"},
      {PointState::queued, "queued"},
      {PointState::running, "running"},
      {PointState::done, "done"},
      {PointState::failed, "failed"},
      {PointState::unknown, "unknown"}};
};

/// Over the measured steps.
struct Spread {
  double median = 0;
  double p10 = 0;  // a tenth of the steps were slower
  double p90 = 0;  // a tenth were faster
};
/// Of at least one value; between two neighbours linear.
Spread spread_of(std::vector<double> values);

/// Mean seconds of a step of rank 0. Absent: not recorded, or there is none.
struct TimeSplit {
  double step = 0;
  std::optional<double> compute;          // what is left of the step
  std::map<std::string, double> exposed;  // group but pp: waiting for its communication
  std::optional<double> bubble;           // waiting for other pipeline stages: group pp
  std::optional<double> data, save;       // waiting for batches, and for checkpoints
};

struct MeasuredBytes {
  std::string group;
  std::string operation;
  std::optional<int64_t> measured;   // of the median step
  std::optional<int64_t> predicted;  // absent: depends on the data
};

/// What the records of one point say.
struct PointMeasures {
  int64_t last_step = 0;
  int64_t steps = 0;  // measured ones
  std::optional<Spread> tokens_per_second;
  std::optional<double> mfu;  // median
  TimeSplit split;
  std::vector<MeasuredBytes> bytes;
  std::optional<double> predicted_bubble, measured_bubble;
  std::optional<int64_t> memory_peak, memory_plan;
  std::vector<std::string> nodes;
  double ended = 0;   // seconds since 1970; 0: unknown
  std::string cause;  // of the last failure, in the ledger's words
};
/// Reads RUN/metrics.jsonl and RUN/ledger.jsonl; what they lack stays absent.
PointMeasures read_measures(const std::string& run_folder, const StudyForecast& forecast);

struct PointResult {
  StudyPoint point;
  PointState state = PointState::waiting;
  std::string cause;  // of failed and impossible points
  std::string log;    // file to look into; empty: none
  PointMeasures measures;
  std::optional<double> efficiency;  // against the first point
};

/// The newest job of a point.
struct PointJob {
  std::string id;                 // empty: never queued
  std::optional<SlurmJob> slurm;  // what Slurm says of it, if it knows it (still)
  bool asked = true;              // false: there is no Slurm to ask here
  bool is_active() const { return slurm && slurm->is_active(); }
};

/// Where a point stands, why, and where its log is. All steps done is done, whatever became of the
/// job. Without efficiency.
PointResult point_result(const Study& study, const StudyPoint& point, const PointJob& job);

/// Sets the efficiency of every finished point: tokens/s per rank over that of the first point,
/// which is the fastest of those finished on the fewest nodes. For strong scaling that is speed-up
/// over ideal speed-up, for weak scaling throughput per rank kept. Returns the first point's name.
std::string set_efficiencies(std::vector<PointResult>& results);

}  // namespace phalanx
