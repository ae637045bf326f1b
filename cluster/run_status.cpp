// Gathering: the run folder tells most; Slurm adds the state of the job.
#include "cluster/run_status.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <limits>

#include "cluster/metrics_tail.h"
#include "cluster/restart_policy.h"
#include "cluster/run_progress.h"
#include "cluster/submission.h"
#include "core/checkpoint/save_folder.h"
#include "core/run_files.h"
#include "core/train/ledger.h"

namespace phalanx {
namespace {

constexpr double kNotFinite = std::numeric_limits<double>::quiet_NaN();
constexpr size_t kRateSteps = 20;  // whose median is told
constexpr size_t kMostEvents = 8;  // that are told
constexpr int64_t kTailBytes = int64_t{1} << 20;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

void gather_steps(const std::string& path, RunStatus& status) {
  std::vector<double> rates;
  std::vector<double> seconds;
  double last_time = 0;
  for (const Record& record : read_last_records(path, kTailBytes)) {
    if (!record.contains("lm_loss")) continue;  // validation, checkpoints, ...
    status.step = integer_in(record, "iteration");
    status.loss = number_in(record, "lm_loss", kNotFinite);  // null
    rates.push_back(number_in(record, "tokens_per_second"));
    seconds.push_back(number_in(record, "step_ms") / 1e3);
    last_time = number_in(record, "time");
  }
  const auto keep_last = [](std::vector<double>& values) {
    if (values.size() > kRateSteps)
      values.erase(values.begin(), values.end() - static_cast<std::ptrdiff_t>(kRateSteps));
  };
  keep_last(rates);
  keep_last(seconds);
  status.tokens_per_second = median(rates);
  status.step_seconds = median(seconds);
  struct stat file {};
  if (last_time == 0 && !rates.empty() && stat(path.c_str(), &file) == 0)
    last_time = static_cast<double>(file.st_mtime);
  if (last_time > 0) status.seconds_since_step = std::max(0.0, now_seconds() - last_time);
}

void gather_ledger(const Records& ledger, RunStatus& status) {
  int64_t starts = 0;
  for (const Record& record : ledger) {
    if (is_event(record, "submitted") && text_in(record, "reason") == kSubmittedByUser) starts = 0;
    if (is_event(record, "attempt_begin")) {
      status.attempt = integer_in(record, "attempt");
      status.nodes = names_in(record, "nodes");
      ++starts;
    }
    if (is_event(record, "training_begin"))
      status.total_steps = integer_in(record, "train_iters", status.total_steps);
    if (std::string sentence = event_sentence(record); !sentence.empty())
      status.events.push_back(std::move(sentence));
  }
  status.restarts = std::max<int64_t>(0, starts - 1);
  if (status.events.size() > kMostEvents)
    status.events.erase(status.events.begin(),
                        status.events.end() - static_cast<std::ptrdiff_t>(kMostEvents));
}

void gather_jobs(Slurm& slurm, RunStatus& status) {
  const std::vector<std::string> ids = read_submission(status.run_dir).jobs;
  const size_t first = ids.size() > 2 ? ids.size() - 2 : 0;
  for (size_t i = first; i < ids.size(); ++i) status.jobs.push_back({.id = ids[i]});
  if (!slurm.installed()) {
    status.slurm_problem = "sbatch is not on PATH here";
    return;
  }
  try {
    for (JobStatus& job : status.jobs) job.job = slurm.job(job.id);
  } catch (const Error& error) {
    status.slurm_problem = error.what();
  }
}

std::string clock_text(double time) {
  const auto seconds = static_cast<std::time_t>(time);
  std::tm local{};
  localtime_r(&seconds, &local);
  return fmt::format("{:04d}-{:02d}-{:02d} {:02d}:{:02d}:{:02d}", local.tm_year + 1900,
                     local.tm_mon + 1, local.tm_mday, local.tm_hour, local.tm_min, local.tm_sec);
}

std::string joined(const std::vector<std::string>& words) {
  return fmt::format("{}", fmt::join(words, ", "));
}

std::string end_sentence(const Record& record) {
  const std::vector<std::string> failed = names_in(record, "nodes_failed");
  const std::string text = text_in(record, "text");
  return fmt::format("start {} ended at step {}: {}{}{}", integer_in(record, "attempt"),
                     integer_in(record, "step"), text_in(record, "cause"),
                     failed.empty() ? "" : " on " + joined(failed),
                     text.empty() ? "" : " (" + text + ")");
}

std::string sentence_of(const Record& record) {
  const std::string event = text_in(record, "event");
  if (event == "attempt_begin")
    return fmt::format("start {} on {}", integer_in(record, "attempt"),
                       joined(names_in(record, "nodes")));
  if (event == "attempt_end") return end_sentence(record);
  if (event == "decision")
    return fmt::format("decision: {}: {}", text_in(record, "action"), text_in(record, "reason"));
  if (event == "hang") return "hang: " + text_in(record, "text");
  if (event == "slow_node")
    return fmt::format("slow node {}: costs {:.1f} % of the step", text_in(record, "node"),
                       number_in(record, "percent"));
  if (event == "signal") return text_in(record, "signal") + " came";
  if (event == "submitted") {
    const auto excluded = names_in(record, "excluded");
    return fmt::format("job {} submitted ({}){}", text_in(record, "job"), text_in(record, "reason"),
                       excluded.empty() ? "" : ", without " + joined(excluded));
  }
  if (event == "checkpoint" && !text_in(record, "problem").empty())
    return fmt::format("checkpoint at step {}: {}", integer_in(record, "step"),
                       text_in(record, "problem"));
  if (event == "preflight") return joined(names_in(record, "outliers"));
  return {};
}

}  // namespace

double RunStatus::seconds_left() const {
  if (!jobs.empty() && !is_active()) return 0;
  return static_cast<double>(std::max<int64_t>(0, total_steps - step)) * step_seconds;
}

bool RunStatus::is_active() const {
  return std::ranges::any_of(jobs,
                             [](const JobStatus& job) { return job.job && job.job->is_active(); });
}

std::string event_sentence(const Record& record) {
  const std::string sentence = sentence_of(record);
  return sentence.empty() ? sentence : clock_text(number_in(record, "time")) + "  " + sentence;
}

RunStatus gather_status(const RunConfig& config, Slurm& slurm) {
  const std::string& run_dir = config.training.run_dir;
  check_usage(std::filesystem::is_directory(run_dir), "there is no run folder ", run_dir);
  RunStatus status{.run_dir = run_dir,
                   .submitted = has_submission(run_dir),
                   .stop_file = std::filesystem::exists(stop_file_path(run_dir)),
                   .total_steps = config.training.train_iters};
  if (status.submitted) gather_jobs(slurm, status);
  const Records ledger = read_ledger(run_dir);
  gather_ledger(ledger, status);
  gather_steps(metrics_path(run_dir), status);
  const auto checkpoints = list_checkpoints(save_folder_of(config));
  if (!checkpoints.empty()) {
    status.checkpoint = checkpoints.front().path;
    status.checkpoint_step = checkpoints.front().iteration;
  }
  const Records metrics = read_step_records(metrics_path(run_dir));
  double last = 0;  // what anybody wrote last
  for (const Records* records : {&ledger, &metrics})
    for (const Record& record : *records) last = std::max(last, number_in(record, "time"));
  status.goodput = goodput(ledger, metrics, status.is_active() ? now_seconds() : last);
  return status;
}

}  // namespace phalanx
