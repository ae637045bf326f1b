// `phalanx study`: a run on several numbers of nodes and in several layouts, and a report of it.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <sstream>
#include <thread>

#include "cluster/external_command.h"
#include "cluster/slurm_text.h"
#include "cluster/study.h"
#include "cluster/submission_checks.h"
#include "core/train/code_version.h"
#include "core/train/stop_flag.h"
#include "launch/commands.h"
#include "launch/options.h"
#include "launch/prepared_run.h"

namespace phalanx {
namespace {

constexpr char kUsage[] =
    "usage: phalanx study --nodes 1,2,4 --strong|--weak --study-dir DIR [options] -- "
    "--global-batch-size N [options of train]\n"
    "       phalanx study --study-dir DIR --report-only\n"
    "Queues one job per node count and layout, one after the other, waits for them, and writes "
    "DIR/report.html\n"
    "and DIR/report.csv: tokens/s, efficiency, where the time goes, bytes against closed formulas, "
    "memory.\n"
    "Nothing is queued if no point can run; points that cannot are listed with the reason. Ctrl-C "
    "leaves the\n"
    "jobs queued; the same command again goes on: finished points are not run again.\n"
    "Unless given behind --: --train-iters 23 (the first 3 steps are not measured), "
    "--save-interval 0,\n--eval-interval 0 and --lr-decay-iters 1000000 (so that any warm-up "
    "fits).\n"
    "Ends with 0 when every point that can run is done, 1 when some are not, 2 when the options "
    "are wrong.";

/// Options of submit but for those that are the point's.
struct PointlessVisitor {
  OptionTable& table;
  void group(std::string_view name) { table.group(name); }
  template <class Value>
  void operator()(std::string_view name, Value& value, std::string_view help) {
    const bool ours = name == "nodes" || name == "min-nodes" || name == "dry-run";
    if (!ours) table(name, value, help);
  }
};

struct StudyTable {
  StudyOptions study;
  SubmitOptions submit;
  std::string config;
  RunConfig unused;  // no preset is asked for on this side of --
  OptionTable table;

  StudyTable() {
    visit_fields(study, table);
    PointlessVisitor visitor{table};
    visit_fields(submit, visitor);
    table.group("Sources");
    table("config", config, "INI-style file of name = value lines, for study and train");
  }
};

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

SubmitOptions submit_options(const StudyTable& options, const StudyPoint& point) {
  SubmitOptions submit = options.submit;
  submit.nodes = point.nodes;
  return submit;
}

/// What the program and Slurm say to a point, without queueing it.
StudyNeeds study_needs(const StudyTable& options, Slurm& slurm) {
  StudyNeeds needs;
  needs.configuration = [](const Arguments& arguments) { return prepare_run(arguments).config; };
  needs.problems = [&](const StudyPoint& point, const RunConfig&) -> std::vector<std::string> {
    SubmitOptions submit = submit_options(options, point);
    submit.dry_run = true;
    try {
      submit_run(submit, prepare_run(point.arguments), slurm);
      return {};
    } catch (const UsageError& error) {
      return lines_of(error.what());
    }
  };
  const int64_t node_mib =
      parse_memory(options.submit.memory)
          .value_or(partition_facts(slurm.nodes(), options.submit.partition).least_memory_mib);
  if (options.submit.gpus_per_node == 0)
    needs.bytes_per_rank = (node_mib << 20) / std::max<int64_t>(1, options.submit.ranks_per_node);
  return needs;
}

std::string host_name() {
  char name[256] = "localhost";
  gethostname(name, sizeof(name) - 1);
  return name;
}

/// The study of the command line, or the one in its folder if it is the same.
Study make_study(const StudyTable& options, const Arguments& all, const Arguments& train,
                 Slurm& slurm) {
  StudyOptions study_options = options.study;
  study_options.study_dir = std::filesystem::absolute(study_options.study_dir).string();
  Study study{
      .folder = study_options.study_dir,
      .weak = study_options.weak,
      .nodes = study_options.nodes,
      .layouts = study_options.layouts,
      .ranks_per_node = options.submit.ranks_per_node,
      .train_arguments = train,
      .command = {"phalanx", "study"},
      .version = code_version(),
      .host = host_name(),
      .created = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
                     .count()};
  study.command.insert(study.command.end(), all.begin(), all.end());
  if (has_study(study.folder)) return continued_study(study);
  study.points =
      study_points(study_options, study.ranks_per_node, train, study_needs(options, slurm));
  write_study(study);
  return study;
}

/// Up to five seconds; false as soon as the user wants to stop.
bool wait_a_while() {
  for (int i = 0; i < 50 && !stop_requested(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  return !stop_requested();
}

/// Closes with what is there and what to do next. Returns the exit code.
int conclude(const StudyReport& report) {
  const std::string page = write_report(report);
  int64_t done = 0, open = 0, failed = 0, impossible = 0;
  for (const PointResult& result : report.results) {
    done += result.state == PointState::done;
    failed += result.state == PointState::failed;
    impossible += result.state == PointState::impossible;
  }
  open = std::ssize(report.results) - done - failed - impossible;
  fmt::print("{} of {} points done{}{}{}\nreport: {}\n", done, report.results.size(),
             failed > 0 ? fmt::format(", {} failed (--retry-failed runs them again)", failed) : "",
             impossible > 0 ? fmt::format(", {} impossible", impossible) : "",
             open > 0 ? fmt::format(", {} still open (the same command again goes on; to give them "
                                    "up: scancel)",
                                    open)
                      : "",
             page);
  return failed + open > 0 ? 1 : 0;
}

int report_only(const StudyOptions& options) {
  check_usage(!options.study_dir.empty(), "study-dir is empty: name the study's folder");
  Slurm slurm;
  const Study study = read_study(std::filesystem::absolute(options.study_dir).string());
  try {
    return conclude(gather_study(study, &slurm));
  } catch (const Error& error) {
    fmt::print(stderr, "phalanx: what became of the jobs is not known: {}\n", error.what());
    return conclude(gather_study(study, nullptr));
  }
}

}  // namespace

int run_study_command(const Arguments& arguments) {
  StudyTable options;
  const auto [own, behind] = split_at_dashes(arguments);
  if (wants_help(own)) {
    std::fputs(help_text(kUsage, options.table).c_str(), stdout);
    return 0;
  }
  throw_problems(apply_options(own, options.table, options.unused));
  if (options.study.report_only) return report_only(options.study);
  Slurm slurm;
  check_usage(slurm.installed(),
              "sbatch is not on PATH: `phalanx study` needs Slurm's commands; run it where they "
              "are installed, usually on a login node. --report-only writes the report of a study "
              "without them");
  check_usage(!options.study.study_dir.empty(),
              "study-dir is empty: name a folder for the study, e.g. --study-dir studies/first");
  Arguments train = behind;
  if (!options.config.empty()) train.insert(train.begin(), {"--config", options.config});
  StudyTask task{.study = make_study(options, arguments, train, slurm),
                 .submit = options.submit,
                 .parallel = options.study.parallel,
                 .retry_failed = options.study.retry_failed,
                 .prepare = [](const StudyPoint& point) { return prepare_run(point.arguments); },
                 .wait = wait_a_while,
                 .say =
                     [](const std::string& line) {
                       fmt::print("{}\n", line);
                       std::fflush(stdout);
                     }};
  std::signal(SIGINT, [](int) { stop_requested() = true; });
  return conclude(run_study(task, slurm));
}

}  // namespace phalanx
