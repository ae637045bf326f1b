// The status of a run for people and for programs.
#include <fmt/format.h>

#include <cmath>

#include "cluster/run_status.h"
#include "cluster/slurm_text.h"

namespace phalanx {
namespace {

std::string duration_text(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(std::max(0.0, seconds)));
  return fmt::format("{}:{:02d}:{:02d}", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string job_text(const JobStatus& status) {
  if (!status.job) return fmt::format("{} is not queued: Slurm no longer knows it", status.id);
  const SlurmJob& job = *status.job;
  std::string text = fmt::format("{} {}", job.id, job.state);
  if (job.state == "PENDING") {
    text += fmt::format(" ({})", job.reason);
    if (!job.dependency.empty()) text += ", after " + job.dependency;
  } else {
    text += fmt::format(" on {} for {} of {}", job.node_list.empty() ? "-" : job.node_list,
                        duration_text(static_cast<double>(job.run_seconds)),
                        time_limit_text(job.time_limit_seconds));
  }
  if (!job.is_active()) text += ", exit code " + job.exit_code;
  return text;
}

std::string progress_text(const RunStatus& status) {
  if (status.tokens_per_second == 0) return "no step yet";
  std::string text = fmt::format("{} of {}", status.step,
                                 status.total_steps > 0 ? std::to_string(status.total_steps) : "?");
  if (status.total_steps > 0)
    text += fmt::format(" ({:.1f} %)", 100.0 * static_cast<double>(status.step) /
                                           static_cast<double>(status.total_steps));
  const std::string loss =
      std::isfinite(status.loss) ? fmt::format("{:.4f}", status.loss) : "not finite";
  return text + fmt::format(", loss {}, {:.0f} tokens/s, {:.3f} s per step", loss,
                            status.tokens_per_second, status.step_seconds);
}

}  // namespace

std::string status_text(const RunStatus& status) {
  std::string text = fmt::format("run         {}\n", status.run_dir);
  const auto row = [&](const char* name, const std::string& value) {
    text += fmt::format("{:<11} {}\n", name, value);
  };
  if (!status.submitted) row("job", "none: not handed in by `phalanx submit`");
  if (!status.slurm_problem.empty())
    row("Slurm", "does not say anything about the job: " + status.slurm_problem);
  else
    for (const JobStatus& job : status.jobs) row("job", job_text(job));
  if (status.stop_file) row("stop file", "there: the run stops, and does not start");
  if (status.attempt > 0)
    row("start", fmt::format("{} ({} restarts since it was submitted) on {}", status.attempt,
                             status.restarts, fmt::join(status.nodes, ", ")));
  row("step", progress_text(status));
  if (status.seconds_since_step >= 0)
    row("last step", duration_text(status.seconds_since_step) + " ago");
  if (status.seconds_left() > 0) row("time left", duration_text(status.seconds_left()));
  row("checkpoint", status.checkpoint.empty() ? "none" : status.checkpoint);
  if (!status.events.empty()) text += "\nlast events\n";
  for (const std::string& event : status.events) text += "  " + event + "\n";
  if (status.goodput.total > 0) text += "\n" + goodput_text(status.goodput);
  return text;
}

nlohmann::ordered_json status_json(const RunStatus& status) {
  using Json = nlohmann::ordered_json;
  Json jobs = Json::array();
  for (const JobStatus& job : status.jobs) {
    Json entry{{"job", job.id}, {"state", nullptr}};
    if (job.job)
      entry.update(Json{{"state", job.job->state},
                        {"reason", job.job->reason},
                        {"nodes", job.job->node_list},
                        {"restarts", job.job->restarts},
                        {"run_seconds", job.job->run_seconds},
                        {"time_limit_seconds", job.job->time_limit_seconds},
                        {"exit_code", job.job->exit_code}});
    jobs.push_back(entry);
  }
  return {{"run_dir", status.run_dir},
          {"submitted", status.submitted},
          {"slurm_problem", status.slurm_problem},
          {"jobs", jobs},
          {"stop_file", status.stop_file},
          {"attempt", status.attempt},
          {"restarts", status.restarts},
          {"nodes", status.nodes},
          {"step", status.step},
          {"total_steps", status.total_steps},
          {"loss", status.loss},
          {"tokens_per_second", status.tokens_per_second},
          {"step_seconds", status.step_seconds},
          {"seconds_since_step", status.seconds_since_step},
          {"seconds_left", status.seconds_left()},
          {"checkpoint", status.checkpoint},
          {"checkpoint_step", status.checkpoint_step},
          {"events", status.events},
          {"goodput",
           {{"goodput", status.goodput.goodput()},
            {"total_seconds", status.goodput.total},
            {"productive_seconds", status.goodput.productive},
            {"lost_seconds", status.goodput.lost},
            {"checkpoint_seconds", status.goodput.checkpoint},
            {"restart_seconds", status.goodput.restart},
            {"waiting_seconds", status.goodput.waiting},
            {"failures", status.goodput.failures},
            {"mean_time_between_failures", status.goodput.mean_time_between_failures},
            {"save_interval_steps", status.goodput.save_interval_steps}}}};
}

}  // namespace phalanx
