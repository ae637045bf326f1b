// The life of one start, from the allocation to the decision.
#include "cluster/supervisor.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <thread>

#include "cluster/restart_policy.h"
#include "cluster/run_progress.h"
#include "cluster/slurm_launcher.h"
#include "cluster/submission_checks.h"
#include "cluster/supervised_ranks.h"
#include "cluster/warning_time.h"
#include "core/checkpoint/file_lock.h"
#include "core/exit_codes.h"
#include "core/run_files.h"
#include "core/train/ledger.h"
#include "kernels/base/log.h"

namespace phalanx {
namespace {

using Action = Decision::Action;
using Fields = nlohmann::ordered_json;

/// How long a job that was requeued is waited with to be ended by Slurm.
constexpr double kRequeueSeconds = 120;
constexpr int64_t kStepNumbers = 8;  // of starts in a row; each costs a few tenths of a second
constexpr int kTries = 5;  // of a command that must not be lost to a controller that restarts
constexpr std::chrono::seconds kBetweenTries{5};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::ranges::find(names, name) != names.end();
}

/// What `question` answers; an empty value, and told, if Slurm does not.
template <class Question>
auto ask(const Question& question) -> decltype(question()) {
  try {
    return question();
  } catch (const Error& error) {
    log_info("supervise: Slurm does not answer: {}", error.what());
    return {};
  }
}

class Supervisor {
 public:
  Supervisor(const PreparedRun& run, const SubmissionRecord& submission, Slurm& slurm)
      : run_(run),
        submission_(submission),
        slurm_(slurm),
        run_dir_(run.config.training.run_dir),
        job_(environment("SLURM_JOB_ID")),
        restarts_(std::atoi(environment("SLURM_RESTART_COUNT").c_str())),
        ledger_(run_dir_) {}

  int run() {
    const std::string list = environment("SLURM_JOB_NODELIST");
    nodes_ = ask([&] { return slurm_.host_names(list); });
    if (nodes_.empty()) nodes_ = expand_node_list(list);
    before_ = read_ledger(run_dir_);
    if (refuses_to_start() || leaves_bad_nodes()) return kExitStopped;
    const int64_t count = node_count();
    if (count == 0) return kExitUsage;
    begin(count);
    take_own_step_number();
    const std::vector<std::string> words = command(count);
    log_info("supervise: {}", command_text(words));
    const RanksEnd ranks = run_ranks(words, inbox_,
                                     {.on_signal = [&](const char* name) { pass_on(name); },
                                      .is_ending =
                                          [&] {
                                            const auto job = ask([&] { return slurm_.job(job_); });
                                            return !job || job->state != "RUNNING";
                                          }});
    const AttemptEnd end = finish(ranks);
    act(decide(end));
    return end.exit_code;
  }

 private:
  void pass_on(const char* signal) {
    ledger_.write("signal", {{"attempt", attempt_}, {"signal", signal}});
    log_info("supervise: {} came: the ranks are told to save and stop", signal);
  }

  void end_here(const std::string& reason) {
    log_info("supervise: the run does not start: {}", reason);
    ledger_.write("decision",
                  {{"action", "end"}, {"reason", reason}, {"excluded", Fields::array()}});
  }

  bool refuses_to_start() {
    if (std::filesystem::exists(stop_file_path(run_dir_))) {
      end_here(stop_file_path(run_dir_) + " is there; `phalanx submit` removes it");
      return true;
    }
    note_lost_start();
    // Slurm's own requeues ask nobody: what goes round in circles ends here.
    Records ledger = before_;
    const RunProgress now = read_run_progress(run_.config);
    Record next{{"event", "attempt_end"}};
    next.update(progress_fields(now));
    ledger.push_back(next);
    if (!two_restarts_without_progress(ledger)) return false;
    std::string reason = "two restarts in a row finished no new step and left no newer checkpoint";
    if (lost_start_) reason += "; the last one was ended without a word (" + lost_text_ + ")";
    end_here(reason);
    return true;
  }

  /// After a requeue by Slurm: a new job without the nodes that failed twice, if there are some.
  bool leaves_bad_nodes() {
    Records ledger = before_;
    ledger.push_back({{"event", "attempt_begin"}, {"previous_nodes_failed", lost_nodes_}});
    const std::optional<Decision> decision = leave_failed_nodes(
        ledger, {.least_nodes = submission_.options.least_nodes(), .usable_nodes = usable_nodes()},
        nodes_);
    if (!decision) return false;
    tell(*decision);
    return try_often([&] { resubmit(*decision); });
  }

  static Record progress_fields(const RunProgress& progress) {
    return {{"finished_step", progress.finished_step}, {"durable_step", progress.durable_step}};
  }

  /// A start before this one that wrote no end: its supervisor died with its node, unless Slurm had
  /// told it to end.
  void note_lost_start() {
    bool signalled = false;
    for (const Record& record : before_) {
      if (is_event(record, "attempt_begin")) {
        lost_start_ = record;
        signalled = false;
        attempt_ = integer_in(record, "attempt");
      }
      if (is_event(record, "attempt_end")) lost_start_.reset();
      signalled = signalled || text_in(record, "signal") == "SIGTERM";
    }
    ++attempt_;
    if (!lost_start_) return;
    const std::vector<std::string> then = names_in(*lost_start_, "nodes");
    if (signalled) {
      lost_text_ = "ended by Slurm before its end could be written";
      return;
    }
    for (const std::string& node : nodes_out(then)) lost_nodes_.push_back(node);
    if (lost_nodes_.empty() && !then.empty()) lost_nodes_.push_back(then.front());
    lost_text_ = fmt::format("node failure: {}", fmt::join(lost_nodes_, ", "));
  }

  std::vector<std::string> nodes_out(const std::vector<std::string>& names) {
    std::vector<std::string> out;
    if (names.empty()) return out;
    const auto list = fmt::format("{}", fmt::join(names, ","));
    for (const SlurmNode& node : ask([&] { return slurm_.nodes(list); }))
      if (node.is_out()) out.push_back(node.name);
    return out;
  }

  /// The most nodes of the allocation on which the run can start; 0, and told, if none.
  int64_t node_count() {
    SubmitOptions options = submission_.options;
    options.nodes = std::ssize(nodes_);
    options.min_nodes = std::min(options.least_nodes(), options.nodes);
    const std::vector<int64_t> counts = valid_node_counts(options, run_.config);
    if (!counts.empty()) return counts.back();
    Problems problems = validate(run_.config, options.nodes * options.ranks_per_node);
    end_here(fmt::format("on {} nodes x {} ranks: {}", options.nodes, options.ranks_per_node,
                         fmt::join(problems, "; ")));
    return 0;
  }

  void begin(int64_t count) {
    // Where not all are needed, those that never failed come first.
    const std::vector<std::string> failed = nodes_failed_twice(before_);
    std::vector<std::string> used = nodes_;
    if (count < std::ssize(nodes_))
      std::ranges::stable_partition(
          used, [&](const std::string& node) { return !contains(failed, node); });
    used.resize(static_cast<size_t>(count));
    used_ = used;
    const auto job = ask([&] { return slurm_.job(job_); });
    const double waited = job && job->start_time >= job->submit_time && job->submit_time > 0
                              ? job->start_time - job->submit_time
                              : 0;
    const RunProgress progress = read_run_progress(run_.config);
    Fields fields{{"attempt", attempt_},
                  {"nodes", used_},
                  {"ranks", count * submission_.options.ranks_per_node},
                  {"waited_seconds", waited}};
    fields.update(Fields(progress_fields(progress)));
    if (lost_start_) {
      fields["previous_text"] = lost_text_;
      fields["previous_nodes_failed"] = lost_nodes_;
    }
    ledger_.write("attempt_begin", fields);
    log_info("supervise: start {} of the run, job {}, on {} of {} nodes: {}", attempt_, job_, count,
             nodes_.size(), fmt::join(used_, ", "));
  }

  /// Slurm counts the steps of a requeued job from 0 again. Ranks of an earlier start may live on
  /// beside this one, where only their node's slurmd died; when they end, Slurm's PMIx plugin has
  /// the step of their number killed, wherever it runs. So neighbouring starts have different ones.
  void take_own_step_number() {
    if (submission_.launcher == Launcher::mpirun) return;
    for (int64_t number = 0; number < restarts_ % kStepNumbers; ++number)
      ask([&] {
        slurm_.use_up_step_number();
        return true;
      });
  }

  std::vector<std::string> command(int64_t count) {
    LaunchShape shape{.nodes = count,
                      .ranks_per_node = submission_.options.ranks_per_node,
                      .cpus_per_rank = submission_.cpus_per_rank,
                      .overcommit = submission_.overcommit};
    if (count < std::ssize(nodes_)) shape.node_names = used_;
    std::vector<std::string> words =
        launch_words(submission_.launcher, submission_.mpi_plugin, shape);
    const std::string& program = submission_.options.program;
    words.push_back(program.empty() ? submission_.program : program);
    words.emplace_back("train");
    words.insert(words.end(), submission_.train_arguments.begin(),
                 submission_.train_arguments.end());
    const auto left = ask([&] { return slurm_.seconds_left(job_); });
    if (left && run_.config.checkpoint.exit_duration_in_mins == 0)
      words.insert(words.end(),
                   {"--exit-duration-in-mins", fmt::format("{:.2f}", training_minutes(*left))});
    return words;
  }

  /// What the trainer itself wrote about the end of this start; an empty record if nothing.
  Record training_end() const {
    Record end = Record::object();
    for (const Record& record : read_ledger(run_dir_)) {
      if (is_event(record, "attempt_begin")) end = Record::object();
      if (is_event(record, "training_end")) end = record;
    }
    return end;
  }

  AttemptEnd finish(const RanksEnd& ranks) {
    const Record told = training_end();
    const EndFacts facts{.launcher_exit_code = ranks.exit_code,
                         .stop_reason = text_in(told, "reason"),
                         .updated = integer_in(told, "updates", 1) > 0,
                         .stop_file = std::filesystem::exists(stop_file_path(run_dir_)),
                         .ended_by_slurm = ranks.ended_by_slurm,
                         .warned = ranks.warned,
                         .warning_seconds = submission_.warning_seconds,
                         .job = ask([&] { return slurm_.job(job_); }),
                         .restarts = restarts_,
                         .nodes = used_,
                         .nodes_out = nodes_out(used_)};
    AttemptEnd end = judge_end(facts, ranks.lines);
    const RunProgress now = read_run_progress(run_.config);
    Fields fields{{"attempt", attempt_},
                  {"exit_code", end.exit_code},
                  {"cause", end.cause},
                  {"nodes_failed", end.nodes_failed},
                  {"step", now.finished_step}};
    fields.update(Fields(progress_fields(now)));
    fields["text"] = end.text;
    ledger_.write("attempt_end", fields);
    log_info(
        "supervise: start {} ended with {}: {}{}{}", attempt_, end.exit_code, end.cause,
        end.nodes_failed.empty() ? "" : fmt::format(" on {}", fmt::join(end.nodes_failed, ", ")),
        end.text.empty() ? "" : fmt::format(" ({})", end.text));
    return end;
  }

  std::vector<std::string> usable_nodes() {
    std::vector<std::string> names;
    const std::string partition = environment("SLURM_JOB_PARTITION");
    const std::vector<std::string> left_out = excluded_by_user(submission_.options);
    for (const SlurmNode& node : ask([&] { return slurm_.nodes(); }))
      if (node.partition == partition && !node.is_out() && !contains(left_out, node.name))
        names.push_back(node.name);
    return names;
  }

  Decision decide(const AttemptEnd& end) {
    Decision decision = decide_restart(
        read_ledger(run_dir_), end,
        {.requeue = submission_.options.requeue,
         .saves = run_.config.checkpoint.save_interval > 0,
         .least_nodes = submission_.options.least_nodes(),
         .usable_nodes = end.exit_code == 0 ? std::vector<std::string>() : usable_nodes()});
    by_slurm_ = end.slurm_requeues && decision.action == Action::requeue;
    tell(decision);
    return decision;
  }

  void tell(const Decision& decision) {
    ledger_.write("decision", {{"action", action_name(decision.action)},
                               {"reason", decision.reason},
                               {"excluded", decision.excluded}});
    log_info("supervise: decision: {}: {}", action_name(decision.action), decision.reason);
  }

  void act(const Decision& decision) {
    if (by_slurm_ || decision.action == Action::end) return;
    if (decision.action == Action::requeue && try_often([&] { slurm_.requeue(job_); })) {
      if (!inbox_.wait_for_end(kRequeueSeconds))
        log_info("supervise: Slurm has not ended job {} after {} s; leaving", job_,
                 kRequeueSeconds);
      return;
    }
    Decision again = decision;
    if (decision.action == Action::requeue) {
      again = {Action::resubmit, "requeueing failed", decision.excluded};
      tell(again);
    }
    if (!try_often([&] { resubmit(again); }))
      tell({Action::end, "handing the job in again failed: submit the run again", {}});
  }

  template <class Command>
  static bool try_often(const Command& command) {
    for (int tried = 0; tried < kTries; ++tried) {
      if (tried > 0) std::this_thread::sleep_for(kBetweenTries);
      if (ask([&] {
            command();
            return true;
          }))
        return true;
    }
    return false;
  }

  void resubmit(const Decision& decision) {
    const std::string script = batch_script_path(run_dir_);
    const FileLock lock(submission_lock_path(run_dir_));
    // What sbatch is told here takes the place of the script's own line.
    std::vector<std::string> excluded = decision.excluded;
    if (!excluded.empty())
      for (const std::string& name : excluded_by_user(submission_.options))
        if (!contains(excluded, name)) excluded.push_back(name);
    const std::string id =
        slurm_.submit(script, {.excluded = excluded, .dependency = "afterany:" + job_});
    ledger_.write("submitted", {{"job", id},
                                {"restart", 0},
                                {"nodes", submission_.options.nodes},
                                {"ranks_per_node", submission_.options.ranks_per_node},
                                {"script", script},
                                {"excluded", decision.excluded},
                                {"reason", decision.reason}});
    SubmissionRecord record = read_submission(run_dir_);
    record.jobs.push_back(id);
    write_submission(run_dir_, record);
    log_info("supervise: job {} goes on with the run", id);
  }

  SignalInbox inbox_;  // first: signals may come at any time
  const PreparedRun& run_;
  const SubmissionRecord& submission_;
  Slurm& slurm_;
  const std::string& run_dir_;
  std::string job_;
  int64_t restarts_;
  Ledger ledger_;
  Records before_;                  // the ledger as this start found it
  std::vector<std::string> nodes_;  // of the allocation
  std::vector<std::string> used_;   // of them, by this start
  int64_t attempt_ = 0;
  std::optional<Record> lost_start_;  // the start before, if it wrote no end
  std::vector<std::string> lost_nodes_;
  std::string lost_text_;
  bool by_slurm_ = false;
};

}  // namespace

int supervise_run(const PreparedRun& run, const SubmissionRecord& submission, Slurm& slurm) {
  check_usage(!environment("SLURM_JOB_ID").empty() && !environment("SLURM_JOB_NODELIST").empty(),
              "supervise is what the script of `phalanx submit` runs inside a job, and this is no "
              "job of Slurm; use `phalanx submit`, or start `phalanx train` yourself");
  return Supervisor(run, submission, slurm).run();
}

}  // namespace phalanx
