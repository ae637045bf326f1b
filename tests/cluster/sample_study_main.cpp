// Writes a study with its report into a folder: points really trained, one impossible, one failed,
// one still queued. For tests of the page, and to look at it.
#include <cstdio>
#include <filesystem>

#include "core/run_files.h"
#include "tests/cluster/study_fixture.h"

namespace {

using namespace phalanx;

SlurmJob ended_job() {
  return {.id = "17", .state = "FAILED", .reason = "NonZeroExitCode", .exit_code = "1:0"};
}

/// What a supervisor leaves of a job that failed.
void fail_point(const Study& study, const StudyPoint& point) {
  test::append_records(ledger_path(study.run_folder(point)),
                       {{{"event", "attempt_begin"}, {"attempt", 1}, {"nodes", {"node1", "node2"}}},
                        {{"event", "attempt_end"},
                         {"attempt", 1},
                         {"exit_code", 1},
                         {"cause", "failed"},
                         {"text", "rank 1 of 2: \"data & <more>\": no such file"}}});
}

void write_sample(const std::string& folder) {
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const Study study = test::small_study(folder, "tp1 pp1,tp2 sp,pp2,recompute=layer zero3", false);
  write_study(study);
  StudyReport report{.study = study, .written = 1.7e9 + 60};
  for (const StudyPoint& point : study.points) {
    PointJob job;
    const bool fails = point.name == "nodes-002_recompute-layer-zero3";
    const bool waits = point.name == "nodes-004_recompute-layer-zero3";
    if (fails) {
      job = {.id = "17", .slurm = ended_job()};
      fail_point(study, point);
    } else if (waits) {
      job = {.id = "18", .slurm = SlurmJob{.id = "18", .state = "PENDING"}};
    } else if (point.problems.empty()) {
      test::train_point(study, point);
    }
    report.results.push_back(point_result(study, point, job));
  }
  report.first_point = set_efficiencies(report.results);
  write_report(report);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: sample_study FOLDER\n");
    return 2;
  }
  write_sample(argv[1]);
  return 0;
}
