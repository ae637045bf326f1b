// `phalanx checkpoint`: lists, checks, compares and rewrites checkpoints, on one process.
#include <fmt/format.h>

#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "core/checkpoint/rewrite.h"
#include "core/checkpoint/save_folder.h"
#include "core/checkpoint/verify.h"
#include "data/file_io.h"
#include "launch/checkpoint_report.h"
#include "launch/commands.h"
#include "launch/options.h"

namespace phalanx {
namespace {

struct CheckpointOptions {
  int64_t threads = 0;
  bool config = false;
  int64_t shards = 0;
};

void print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
}

/// Bytes, percent and speed on standard error: all the time on a terminal, elsewhere at the end.
class ProgressLine {
 public:
  ~ProgressLine() {
    if (total_ > 0) show("\n");
  }
  ByteProgress callback() {
    return [this](int64_t done, int64_t total) {
      done_ = done;
      total_ = total;
      const auto now = Clock::now();
      if (!terminal_ || now - last_ < std::chrono::milliseconds(100)) return;
      last_ = now;
      show("");
    };
  }

 private:
  using Clock = std::chrono::steady_clock;
  void show(const char* end) const {
    const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
    const auto done = static_cast<double>(done_);
    std::fprintf(stderr, "%s%s of %s, %.1f %%, %.2f GB/s%s", terminal_ ? "\r" : "",
                 size_text(done_).c_str(), size_text(total_).c_str(),
                 100 * done / static_cast<double>(total_), done / 1e9 / seconds, end);
  }

  bool terminal_ = isatty(STDERR_FILENO) == 1;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point last_;
  int64_t done_ = 0;
  int64_t total_ = 0;
};

/// The command's paths, in its order.
using Paths = std::vector<std::string>;

int run_ls(const Paths& paths, const CheckpointOptions&) {
  bool any_damage = false;
  print(list_text(find_checkpoints(paths[0]), any_damage));
  return any_damage ? 1 : 0;
}

bool verify_one(const std::string& folder, int threads) {
  VerifyReport report;
  {
    ProgressLine line;
    report = verify_checkpoint(folder, {.threads = threads, .progress = line.callback()});
  }
  for (const std::string& damage : report.damages) print(damage + "\n");
  for (const std::string& note : report.notes) print("note: " + note + "\n");
  print(fmt::format("{}: {}, {} of tensors read\n", folder,
                    report.intact() ? "intact" : fmt::format("{} damages", report.damages.size()),
                    size_text(report.bytes)));
  return report.intact();
}

int run_verify(const Paths& paths, const CheckpointOptions& options) {
  const FoundCheckpoints found = find_checkpoints(paths[0]);
  check_usage(!found.folders.empty(), found.save, " has no checkpoint to verify, only ",
              found.incomplete.size(), " incomplete ones; see `phalanx checkpoint ls`");
  bool intact = true;
  for (const std::string& folder : found.folders)
    intact = verify_one(folder, static_cast<int>(options.threads)) && intact;
  for (const std::string& folder : found.incomplete)
    print("note: " + folder + " is no complete checkpoint and was not read\n");
  if (!found.save.empty()) latest_iteration(found.save);  // throws if it is damaged
  return intact ? 0 : 1;
}

int run_show(const Paths& paths, const CheckpointOptions& options) {
  CheckpointReader reader(one_checkpoint(paths[0]));
  if (options.config) {
    print(reader.manifest().config_ini);
    return 0;
  }
  print(scalars_text(reader.folder(), reader.manifest()) + "\n");
  std::vector<TensorStatistics> statistics;
  {
    ProgressLine line;
    statistics = tensor_statistics(reader, static_cast<int>(options.threads), line.callback());
  }
  print(statistics_text(statistics));
  return 0;
}

int run_diff(const Paths& paths, const CheckpointOptions& options) {
  CheckpointReader first(one_checkpoint(paths[0]));
  CheckpointReader second(one_checkpoint(paths[1]));
  CheckpointDifference difference;
  {
    ProgressLine line;
    difference =
        compare_checkpoints(first, second, static_cast<int>(options.threads), line.callback());
  }
  const auto changed = option_differences(first.manifest(), second.manifest());
  print("a: " + first.folder() + "\nb: " + second.folder() + "\n");
  print(difference_text(difference, changed,
                        origin_differences(first.manifest(), second.manifest())));
  const bool same = difference.same() && changed.empty();
  print(same ? "the same\n" : "different\n");
  return same ? 0 : 1;
}

int run_reshard(const Paths& paths, const CheckpointOptions& options) {
  const std::string source = one_checkpoint(paths[0]);
  {
    ProgressLine line;
    reshard_checkpoint(source, paths[1], options.shards, line.callback());
  }
  print(fmt::format("{} is {} in {} shards\n", paths[1], source, options.shards));
  return 0;
}

int run_export(const Paths& paths, const CheckpointOptions&) {
  const std::string source = one_checkpoint(paths[0]);
  {
    ProgressLine line;
    export_weights(source, paths[1], line.callback());
  }
  print(fmt::format("{} holds the weights of {}\n", paths[1], source));
  const std::string config = folder_of(paths[1]) + "/config.ini";
  if (!file_exists(config))
    print(
        fmt::format("`evaluate --load` needs the run's configuration beside it: phalanx "
                    "checkpoint show {} --config > {}\n",
                    source, config));
  return 0;
}

struct Action {
  const char* name;
  const char* arguments;
  const char* purpose;
  size_t num_paths;
  void (*add_options)(CheckpointOptions&, OptionTable&);
  int (*run)(const Paths&, const CheckpointOptions&);
};

void no_options(CheckpointOptions&, OptionTable&) {}
void threads_option(CheckpointOptions& options, OptionTable& table) {
  table("threads", options.threads, "threads that read; 0: one per core");
}
void show_options(CheckpointOptions& options, OptionTable& table) {
  threads_option(options, table);
  table("config", options.config, "print the run's configuration and nothing else");
}
void reshard_options(CheckpointOptions& options, OptionTable& table) {
  table("shards", options.shards, "number of shards");
}

constexpr Action kActions[] = {
    {"ls", "PATH", "what is there, told from manifests and sizes", 1, no_options, run_ls},
    {"verify", "PATH [--threads N]", "reads all, compares every checksum, names every damage", 1,
     threads_option, run_verify},
    {"show", "PATH [--threads N] [--config]",
     "state and statistics of every tensor; or only the run's config.ini", 1, show_options,
     run_show},
    {"diff", "A B [--threads N]", "differences of options, state and tensors", 2, threads_option,
     run_diff},
    {"reshard", "IN OUT --shards N", "the same checkpoint in another number of files", 2,
     reshard_options, run_reshard},
    {"export-h5", "IN FILE", "the weights alone, in one file as the end of a run writes it", 2,
     no_options, run_export},
};

std::string usage() {
  std::string text = "usage: phalanx checkpoint ACTION ...\n\n";
  for (const Action& action : kActions)
    text += fmt::format("  {:<9} {:<30} {}\n", action.name, action.arguments, action.purpose);
  return text +
         "\nA path is an iter_ folder, a folder of these, or a run folder (its checkpoints/). ls "
         "and verify take\nall checkpoints there, the others the newest complete one. --threads 0, "
         "the default, is one per core.\nEnds with 0 if all is well, 1 if a checkpoint is damaged "
         "or two differ, 2 if the arguments are wrong.\n";
}

int run_action(const Action& action, const Arguments& arguments) {
  CheckpointOptions options;
  OptionTable table;
  action.add_options(options, table);
  Paths paths;
  auto problems = apply_command_line(arguments, table, paths);
  if (paths.size() != action.num_paths)
    problems.push_back(fmt::format("{} takes {} path{}, not {}: phalanx checkpoint {} {}",
                                   action.name, action.num_paths, action.num_paths == 1 ? "" : "s",
                                   paths.size(), action.name, action.arguments));
  if (options.threads < 0)
    problems.push_back(
        fmt::format("threads {} is negative; the nearest is 0 (one per core)", options.threads));
  throw_problems(problems);
  return action.run(paths, options);
}

}  // namespace

int run_checkpoint(const Arguments& arguments) {
  if (wants_help(arguments)) {
    print(usage());
    return 0;
  }
  check_usage(!arguments.empty(), "no action given\n", usage());
  std::vector<std::string> names;
  for (const Action& action : kActions) {
    if (arguments[0] == action.name)
      return run_action(action, {arguments.begin() + 1, arguments.end()});
    names.emplace_back(action.name);
  }
  throw UsageError(fmt::format("no action is called '{}'; the nearest is '{}'\n{}", arguments[0],
                               nearest_word(arguments[0], names), usage()));
}

}  // namespace phalanx
