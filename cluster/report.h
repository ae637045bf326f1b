// The report of a study: report.html and report.csv.
#pragma once

#include <string>
#include <vector>

#include "cluster/study_results.h"

namespace phalanx {

struct StudyReport {
  Study study;
  std::vector<PointResult> results;  // in the order of study.points
  std::string first_point;           // that efficiencies refer to; empty: none finished
  double written = 0;                // seconds since 1970
};

/// One page that needs nothing beside itself: no scripts, no files, no network. Well-formed XML.
std::string report_html(const StudyReport& report);

/// The pictures of the page (report_charts.cpp).
std::string report_pictures(const StudyReport& report);

/// Replaces STUDY/report.html and STUDY/report.csv, each in one step. Returns the page's path.
std::string write_report(const StudyReport& report);

}  // namespace phalanx
