// The steps of a submission, in the order in which they can refuse.
#include "cluster/submission.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "cluster/batch_script.h"
#include "cluster/metrics_tail.h"
#include "cluster/restart_policy.h"
#include "cluster/slurm_launcher.h"
#include "cluster/slurm_text.h"
#include "cluster/submission_checks.h"
#include "cluster/warning_time.h"
#include "core/checkpoint/file_lock.h"
#include "core/run_files.h"
#include "core/train/ledger.h"
#include "data/file_io.h"
#include "kernels/base/error.h"

namespace phalanx {
namespace {

constexpr int64_t kMetricsBytes = int64_t{1} << 20;  // some hundred steps

void refuse(const Problems& problems) {
  if (problems.empty()) return;
  throw UsageError(fmt::format(
      "nothing was queued: {}\n  {}",
      problems.size() == 1 ? "one problem:" : "all to be mended:", fmt::join(problems, "\n  ")));
}

/// One submission on its way.
class Submitter {
 public:
  Submitter(const SubmitOptions& options, const PreparedRun& run, Slurm& slurm)
      : options_(options), run_(run), slurm_(slurm), run_dir_(run.config.training.run_dir) {}

  Submission submit() {
    check_usage(options_.dry_run || slurm_.installed(),
                "sbatch is not on PATH: `phalanx submit` needs Slurm's commands; run it where they "
                "are installed, usually on a login node. --dry-run prints the script without them");
    check_everything();
    choose();
    submission_.script_path = batch_script_path(run_dir_);
    const BatchScript batch = script();
    submission_.script = batch_script_text(batch);
    if (!options_.dry_run) queue(batch);
    return submission_;
  }

 private:
  void note(std::string text) { submission_.notes.push_back(std::move(text)); }

  void check_everything() {
    Problems problems = layout_problems(options_, run_.config);
    append(problems, restart_problems(options_, run_.config));
    if (slurm_.installed()) {
      partition_ = partition_facts(slurm_.nodes(), options_.partition);
      append(problems, partition_problems(options_, *partition_));
    }
    refuse(problems);
    check_memory();
    note_node_counts();
  }

  void check_memory() {
    int64_t node_mib = parse_memory(options_.memory).value_or(0);
    if (node_mib == 0 && partition_) node_mib = partition_->least_memory_mib;
    const NodeMemory memory = check_node_memory(options_, run_.config, node_mib);
    note(fmt::format("memory: the ranks of a node need {} MiB{}", memory.needed,
                     node_mib > 0 ? fmt::format(" of {}", node_mib)
                                  : std::string("; what a node has is not known here")));
  }

  void note_node_counts() {
    if (partition_ && options_.nodes > partition_->nodes)
      note(
          fmt::format("{} of the {} nodes of partition {} are down or drained: the job waits "
                      "until {} are there",
                      partition_->nodes_out, partition_->nodes + partition_->nodes_out,
                      partition_->name, options_.least_nodes()));
    if (options_.least_nodes() == options_.nodes) return;
    const auto counts = valid_node_counts(options_, run_.config);
    note(
        fmt::format("these options can run on {} nodes; with other numbers in between some nodes "
                    "stay idle",
                    fmt::join(counts, ", ")));
  }

  void check_not_running() {
    if (!has_submission(run_dir_)) return;
    earlier_jobs_ = read_submission(run_dir_).jobs;
    for (const std::string& id : earlier_jobs_) {
      const std::optional<SlurmJob> job = slurm_.job(id);
      check_usage(!job || !job->is_active(), "job ", id, " of ", run_dir_, " is ",
                  job ? job->state : "",
                  ": two jobs must not write into one run folder. Stop it "
                  "with `phalanx cancel ",
                  run_dir_, "`, or use another --run-dir");
    }
  }

  void choose() {
    launcher_ = choose_launcher(options_.launcher, probe_launchers(slurm_));
    note("ranks are started by " + launcher_.reason);
    const int64_t cpus = partition_ ? partition_->least_cpus : 0;
    cpus_per_rank_ = options_.cpus_per_rank;
    overcommit_ = cpus > 0 && cpus_per_rank_ == 0 && options_.ranks_per_node > cpus;
    if (overcommit_)
      note(fmt::format("{} ranks share the {} processors of a node, and give way while they wait",
                       options_.ranks_per_node, cpus));
    // Overcommitted, Slurm counts processors per node and not per rank.
    if (cpus_per_rank_ == 0 && cpus > 0)
      cpus_per_rank_ = overcommit_ ? cpus : cpus / options_.ranks_per_node;
  }

  BatchScript script() const {
    const int64_t time =
        parse_time_limit(options_.time).value_or(partition_ ? partition_->time_limit_seconds : 0);
    return {
        .options = options_,
        .run_dir = run_dir_,
        .program = run_.program,
        .working_folder = std::filesystem::current_path().string(),
        .cpus_per_rank = cpus_per_rank_,
        .threads_per_rank = overcommit_ ? 1 : cpus_per_rank_,
        .overcommit = overcommit_,
        .warning_seconds = warning_seconds(
            read_ledger(run_dir_), read_last_records(metrics_path(run_dir_), kMetricsBytes), time)};
  }

  void remove_stop_file() {
    if (std::filesystem::remove(stop_file_path(run_dir_)))
      note(fmt::format("removed {}, which had stopped the run", stop_file_path(run_dir_)));
  }

  void queue(const BatchScript& batch) {
    std::filesystem::create_directories(run_dir_);
    const FileLock lock(submission_lock_path(run_dir_));  // of two at the same time one is refused
    check_not_running();
    remove_stop_file();
    TemporaryFile file(submission_.script_path);
    FileWriter writer(file.path());
    writer.write(submission_.script.data(), static_cast<int64_t>(submission_.script.size()));
    writer.flush();
    file.publish();
    SubmissionRecord record{.options = options_,
                            .train_arguments = run_.train_arguments,
                            .program = run_.program,
                            .working_folder = batch.working_folder,
                            .launcher = launcher_.launcher,
                            .mpi_plugin = launcher_.mpi_plugin,
                            .cpus_per_rank = cpus_per_rank_,
                            .overcommit = overcommit_,
                            .warning_seconds = batch.warning_seconds,
                            .jobs = earlier_jobs_};
    write_submission(run_dir_, record);  // before the job can begin and read it
    submission_.job = slurm_.submit(submission_.script_path, {.dependency = options_.dependency});
    record.jobs.push_back(submission_.job);
    write_submission(run_dir_, record);
    Ledger(run_dir_).write("submitted", {{"job", submission_.job},
                                         {"restart", 0},
                                         {"nodes", options_.nodes},
                                         {"ranks_per_node", options_.ranks_per_node},
                                         {"script", submission_.script_path},
                                         {"excluded", nlohmann::ordered_json::array()},
                                         {"reason", kSubmittedByUser}});
  }

  const SubmitOptions& options_;
  const PreparedRun& run_;
  Slurm& slurm_;
  const std::string& run_dir_;
  std::optional<PartitionFacts> partition_;
  std::vector<std::string> earlier_jobs_;
  ChosenLauncher launcher_;
  int64_t cpus_per_rank_ = 0;
  bool overcommit_ = false;
  Submission submission_;
};

}  // namespace

Submission submit_run(const SubmitOptions& options, const PreparedRun& run, Slurm& slurm) {
  return Submitter(options, run, slurm).submit();
}

}  // namespace phalanx
