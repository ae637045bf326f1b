// Points of a scaling study: every node count with every layout, and what is expected of each.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cluster/study_options.h"
#include "cluster/study_traffic.h"

namespace phalanx {

/// What is known of a point before it runs.
struct StudyForecast {
  int64_t memory_bytes = 0;      // of the rank that needs most, on the CPU
  double bubble = 0;             // part of a step that the pipeline's ranks idle
  std::vector<StepBytes> bytes;  // of rank 0
};

struct StudyPoint {
  std::string name;  // of its run folder: "nodes-004_tp2-pp1"
  int64_t nodes = 1;
  int64_t ranks = 1;
  std::string layout;  // "tp2 pp1"
  int64_t global_batch_size = 0;
  int64_t train_iters = 0;
  std::vector<std::string> arguments;  // of `phalanx train`
  std::vector<std::string> problems;   // why it cannot run; empty if it can
  StudyForecast forecast;              // if it can
};

/// What the study asks of whoever knows the options of `phalanx train` and the cluster.
struct StudyNeeds {
  /// The configuration that the arguments of `phalanx train` make. Throws UsageError.
  std::function<RunConfig(const std::vector<std::string>&)> configuration;
  /// Why a point cannot run, one sentence each: layout, memory, partition.
  std::function<std::vector<std::string>(const StudyPoint&, const RunConfig&)> problems;
  /// Memory that a rank may take on the CPU; 0: not known. `auto` leaves out what needs more.
  int64_t bytes_per_rank = 0;
};

/// "1,2,4" ascending. Throws UsageError if that is no list of different numbers of at least 1.
std::vector<int64_t> parse_node_counts(const std::string& text);

/// The options of `phalanx train` that a layout's words stand for: "tp2 sp" to
/// {"--tensor-model-parallel-size", "2", "--sequence-parallel"}. Throws UsageError that names the
/// bad word.
std::vector<std::string> layout_arguments(const std::string& layout);

/// All points, ascending in nodes. Those that cannot run have `problems`. Throws UsageError if the
/// options make no study, or none of its points can run.
std::vector<StudyPoint> study_points(const StudyOptions& options, int64_t ranks_per_node,
                                     const std::vector<std::string>& train_arguments,
                                     const StudyNeeds& needs);

}  // namespace phalanx
