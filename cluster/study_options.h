// StudyOptions: which points a scaling study has.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/base/fields.h"

namespace phalanx {

/// Steps at the start of a run that are not measured: memory is touched, caches and connections are
/// made for the first time.
inline constexpr int64_t kWarmupSteps = 3;
/// Steps of a point unless --train-iters says otherwise.
inline constexpr int64_t kStudySteps = 23;

struct StudyOptions {
  std::string nodes = "1";
  bool strong = false;
  bool weak = false;
  std::string layouts = "none";
  std::string study_dir;
  bool parallel = false;
  bool retry_failed = false;
  bool report_only = false;
};

template <class Config, class Visitor>
requires ConfigOf<Config, StudyOptions>
void visit_fields(Config& config, Visitor& visit) {
  visit.group("Study");
  visit("nodes", config.nodes, "node counts, separated by commas: 1,2,4");
  visit("strong", config.strong,
        "strong scaling: --global-batch-size is the same at every node count");
  visit("weak", config.weak,
        "weak scaling: --global-batch-size is of the first node count and grows with the nodes");
  visit("layouts", config.layouts,
        "layouts to try at every node count, separated by commas, of words tp2 pp2 cp2 ep2 etp2 "
        "vp2 mb2 sp zero1 zero3 gpipe 1f1b interleaved zero-bubble recompute=layer; auto: the most "
        "promising ones of each node count; none: what the train options say");
  visit("study-dir", config.study_dir, "folder of the study: one run folder per point, the report");
  visit("parallel", config.parallel,
        "queue all points at once; without: each waits until the one before has ended, so that "
        "they do not share machines and links");
  visit("retry-failed", config.retry_failed, "run failed points again");
  visit("report-only", config.report_only, "queue nothing; write the report of what is there");
}

}  // namespace phalanx
