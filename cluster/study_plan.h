// study.json: what a study is, kept beside its run folders.
#pragma once

#include <string>
#include <vector>

#include "cluster/study_points.h"

namespace phalanx {

struct Study {
  std::string folder;
  // What the points were made of.
  bool weak = false;
  std::string nodes;
  std::string layouts;
  int64_t ranks_per_node = 1;
  std::vector<std::string> train_arguments;
  std::vector<std::string> command;  // `phalanx study ...` that made it
  std::string version;
  std::string host;    // where the command ran
  double created = 0;  // seconds since 1970
  std::vector<StudyPoint> points;

  std::string run_folder(const StudyPoint& point) const { return folder + "/" + point.name; }
};

std::string study_path(const std::string& folder);
bool has_study(const std::string& folder);
/// Throws UsageError if there is none, Error if the file is not what `write_study` wrote.
Study read_study(const std::string& folder);
/// Replaces study.json in one step: whoever reads it, and whoever is killed, sees the whole old or
/// the whole new one.
void write_study(const Study& study);
/// The same for any file.
void replace_file(const std::string& path, const std::string& text);

/// The study that is in the folder of `asked`, whose points are not looked at. Throws UsageError
/// that names what differs if that is another study.
Study continued_study(const Study& asked);

}  // namespace phalanx
