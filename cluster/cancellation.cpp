// The stop file first, so that nothing starts again behind our back.
#include "cluster/cancellation.h"

#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>
#include <vector>

#include "cluster/metrics_tail.h"
#include "cluster/submission.h"
#include "core/run_files.h"
#include "core/train/ledger.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kBetweenLooks{1000};
constexpr std::chrono::seconds kCancelPatience{60};  // Slurm's KillWait is 30 s by default
constexpr int64_t kTailBytes = int64_t{1} << 16;

class Canceller {
 public:
  Canceller(const std::string& run_dir, const CancelOptions& options, Slurm& slurm,
            const std::function<void(const std::string&)>& tell)
      : run_dir_(run_dir), options_(options), slurm_(slurm), tell_(tell) {}

  void run() {
    write_stop_file();
    if (!has_submission(run_dir_)) {
      tell_(
          fmt::format("{} was not handed in by `phalanx submit`; if it runs it stops at its next "
                      "step, because of {}",
                      run_dir_, stop_file_path(run_dir_)));
      return;
    }
    // A job may hand the run on to another while we look.
    bool found = false;
    while (const std::optional<SlurmJob> job = active_job()) {
      found = true;
      end(*job);
    }
    if (!found) tell_("no job of " + run_dir_ + " waits or runs");
  }

 private:
  void write_stop_file() {
    std::ofstream file(stop_file_path(run_dir_));
    file << "phalanx cancel\n";
    file.close();
    check(!file.fail(), "cannot write ", stop_file_path(run_dir_),
          "; is the disk full or the folder another user's?");
  }

  std::optional<SlurmJob> active_job() {
    const std::vector<std::string> ids = read_submission(run_dir_).jobs;
    for (auto id = ids.rbegin(); id != ids.rend(); ++id)
      if (auto job = slurm_.job(*id); job && job->is_active()) return job;
    return std::nullopt;
  }

  void note(const SlurmJob& job, const std::string& reason) {
    Ledger(run_dir_).write("decision", {{"job", job.id},
                                        {"restart", job.restarts},
                                        {"action", "end"},
                                        {"reason", "phalanx cancel: " + reason},
                                        {"excluded", nlohmann::ordered_json::array()}});
  }

  void end(const SlurmJob& job) {
    const bool runs = job.state == "RUNNING" || job.state == "COMPLETING";
    if (runs && !options_.now) {
      note(job, "the ranks are told to save and stop");
      tell_(fmt::format("job {} is {}: {} tells its ranks to save and stop", job.id, job.state,
                        stop_file_path(run_dir_)));
      if (wait_until_over(job.id, std::chrono::seconds(options_.grace))) return;
      tell_(fmt::format("it has not ended after {} s", options_.grace));
    }
    note(job, "the job is cancelled");
    slurm_.cancel(job.id);
    tell_(fmt::format("job {} ({}) is cancelled", job.id, job.state));
    check(wait_until_over(job.id, kCancelPatience), "job ", job.id, " is still not over ",
          kCancelPatience.count(), " s after scancel; look at `scontrol show job ", job.id, "`");
  }

  /// False after `patience`, or if the job waits again: that cancelling can end.
  bool wait_until_over(const std::string& id, std::chrono::seconds patience) {
    const auto deadline = Clock::now() + patience;
    std::string told;
    while (Clock::now() < deadline) {
      const std::optional<SlurmJob> job = slurm_.job(id);
      const std::string now = fmt::format("{}{}", job ? job->state : "gone", step_text());
      if (now != told) tell_(fmt::format("  job {}: {}", id, now));
      told = now;
      if (!job || !job->is_active()) return true;
      if (job->state == "PENDING") return false;
      std::this_thread::sleep_for(kBetweenLooks);
    }
    return false;
  }

  std::string step_text() const {
    const Records records = read_last_records(metrics_path(run_dir_), kTailBytes);
    for (auto record = records.rbegin(); record != records.rend(); ++record)
      if (record->contains("lm_loss"))
        return fmt::format(", step {}", integer_in(*record, "iteration"));
    return {};
  }

  const std::string& run_dir_;
  const CancelOptions& options_;
  Slurm& slurm_;
  const std::function<void(const std::string&)>& tell_;
};

}  // namespace

void cancel_run(const std::string& run_dir, const CancelOptions& options, Slurm& slurm,
                const std::function<void(const std::string&)>& tell) {
  check_usage(std::filesystem::is_directory(run_dir), "there is no run folder ", run_dir);
  Canceller(run_dir, options, slurm, tell).run();
}

}  // namespace phalanx
