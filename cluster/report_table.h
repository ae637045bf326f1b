// The figures of a study as text, once for report.csv and report.html.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cluster/study_results.h"

namespace phalanx {

/// One figure of every point. `text` is empty where a point has none.
struct ReportColumn {
  std::string name;        // in the CSV: "tokens_per_second_median"
  std::string heading;     // in the page: "tokens/s"
  std::string definition;  // one line
  std::function<std::string(const PointResult&)> text;
  bool words = false;  // no figures
};

/// Columns that stand in one table of the page.
struct ReportTable {
  std::string title;
  std::vector<ReportColumn> columns;
};

/// All but the bytes. Columns of groups that no result has are left out.
std::vector<ReportTable> report_tables(const std::vector<PointResult>& results);

/// A group and operation that some result has moved, or was to move, bytes by.
struct ByteColumns {
  std::string group;
  std::string operation;
  ReportColumn measured;
  ReportColumn predicted;
};
std::vector<ByteColumns> byte_columns(const std::vector<PointResult>& results);

/// Fields in quotes where they hold a quote, comma or line end (RFC 4180); lines end in \r\n.
std::string csv_line(const std::vector<std::string>& fields);
/// Header and one line per point: name, then all of the above, then the command line.
std::string report_csv(const std::vector<PointResult>& results);

/// What to type to train the point alone, without Slurm.
std::string command_line(const StudyPoint& point);

}  // namespace phalanx
