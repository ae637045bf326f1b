// Studies for tests: points that were really trained, in threads of this process, and records by
// hand.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cluster/report.h"

namespace phalanx::test {

/// Options of `phalanx train` of a small run, as one would type them.
std::vector<std::string> small_run_arguments();

/// What study_points needs, with the program's own options and validation.
StudyNeeds plain_needs();

/// A study of small runs on 1, 2 and 4 nodes of one rank, with the layouts given, in `folder`.
Study small_study(const std::string& folder, const std::string& layouts, bool weak);

/// Trains a point in threads, one per rank, so that its run folder has real records.
void train_point(const Study& study, const StudyPoint& point);

/// Appends lines to a file of a point's run folder, made if need be.
void append_records(const std::string& path, const std::vector<nlohmann::json>& records);

}  // namespace phalanx::test
