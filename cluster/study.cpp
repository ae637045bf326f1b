// Queueing and waiting.
#include "cluster/study.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

namespace phalanx {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// The newest, from the point's own folder: the supervisor may have handed in another one.
PointJob newest_job(const Study& study, const StudyPoint& point, Slurm* slurm) {
  const std::string folder = study.run_folder(point);
  if (!point.problems.empty() || !has_submission(folder)) return {};
  const std::vector<std::string> jobs = read_submission(folder).jobs;
  if (jobs.empty()) return {};
  PointJob job{.id = jobs.back(), .asked = slurm != nullptr};
  if (slurm != nullptr) job.slurm = slurm->job(job.id);
  return job;
}

bool is_active(const PointResult& result) {
  return result.state == PointState::queued || result.state == PointState::running;
}

class Runner {
 public:
  Runner(const StudyTask& task, Slurm& slurm) : task_(task), slurm_(slurm) {}

  StudyReport run() {
    StudyReport report = gather_study(task_.study, &slurm_);
    for (const PointResult& result : report.results) {
      const bool again = task_.retry_failed && result.state == PointState::failed;
      if (result.state == PointState::waiting || again)
        queue(result.point);
      else if (is_active(result))
        last_job_ = newest_job(task_.study, result.point, nullptr).id;
    }
    report = gather_study(task_.study, &slurm_);
    tell(report);
    while (std::ranges::any_of(report.results, is_active) && task_.wait()) {
      try {
        report = gather_study(task_.study, &slurm_);
      } catch (const UsageError&) {
        throw;
      } catch (const Error& error) {  // Slurm's controller may be busy or restart
        task_.say(fmt::format("cannot look at the queue just now: {}", error.what()));
        continue;
      }
      tell(report);
    }
    return report;
  }

 private:
  void queue(const StudyPoint& point) {
    SubmitOptions options = task_.submit;
    options.nodes = point.nodes;
    options.ranks_per_node = task_.study.ranks_per_node;
    if (options.job_name.empty()) options.job_name = point.name;
    if (!task_.parallel && !last_job_.empty()) {
      if (!options.dependency.empty()) options.dependency += ",";
      options.dependency += "afterany:" + last_job_;
    }
    const Submission submission = submit_run(options, task_.prepare(point), slurm_);
    last_job_ = submission.job;
    task_.say(fmt::format("{}: job {} is queued", point.name, submission.job));
  }

  /// What has changed since the last time; then the report is written anew.
  void tell(const StudyReport& report) {
    bool changed = false;
    told_.resize(report.results.size(), PointState::waiting);
    for (size_t i = 0; i < told_.size(); ++i) {
      const PointResult& result = report.results[i];
      if (told_[i] == result.state) continue;
      told_[i] = result.state;
      changed = true;
      task_.say(fmt::format("{}: {}{}{}", result.point.name, enum_name(result.state),
                            result.cause.empty() ? "" : ": ", result.cause));
    }
    if (changed) write_report(report);
  }

  const StudyTask& task_;
  Slurm& slurm_;
  std::string last_job_;
  std::vector<PointState> told_;
};

}  // namespace

StudyReport gather_study(const Study& study, Slurm* slurm) {
  StudyReport report{.study = study, .written = now()};
  for (const StudyPoint& point : study.points)
    report.results.push_back(point_result(study, point, newest_job(study, point, slurm)));
  report.first_point = set_efficiencies(report.results);
  return report;
}

StudyReport run_study(const StudyTask& task, Slurm& slurm) {
  return Runner(task, slurm).run();
}

}  // namespace phalanx
