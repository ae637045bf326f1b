// Folders, manifests and options that decide whether and where a run goes on.
#include "core/train/resume_candidates.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "core/checkpoint/save_names.h"
#include "data/file_io.h"
#include "kernels/base/log.h"

namespace phalanx {
namespace {

/// Checkpoints in what --load-checkpoint may name: one of them, a save folder, a run folder.
std::vector<SaveEntry> checkpoints_of(const std::string& path) {
  if (file_exists(path + "/manifest.json"))
    return {{read_checkpoint_manifest(path).counters.step, path}};
  const std::vector<SaveEntry> list = list_checkpoints(path);
  return list.empty() ? list_checkpoints(path + "/checkpoints") : list;
}

/// A save folder without complete checkpoints that once had some, or was to have.
bool lost_its_checkpoints(const std::string& save) {
  if (!std::filesystem::is_directory(save)) return false;
  return std::ranges::any_of(names_in(save), [](const std::string& name) {
    const auto found = parse_save_name(name);
    return name == kLatestFile || (found && found->kind != kWriting && found->kind != kDeleting);
  });
}

/// No crash leaves a checkpoint's name without COMMITTED, nor a latest file ahead of the newest
/// checkpoint: something was deleted since, and whoever looks at the log should know.
void tell_of_lost(SaveFolder& folder, int64_t newest) {
  const std::string& save = folder.path();
  for (const std::string& name : names_in(save)) {
    const auto found = parse_save_name(name);
    if (!found || !found->kind.empty() || is_complete(fmt::format("{}/{}", save, name))) continue;
    log_info("CHECKPOINT DAMAGED: {}/{}/{} is missing", save, name, kCommittedFile);
    folder.set_aside_damaged(found->iteration);
  }
  try {
    const int64_t latest = latest_iteration(save);
    if (latest > newest)
      log_info("CHECKPOINT LOST: {}/{} names iteration {}, the newest complete one is {}", save,
               kLatestFile, latest, newest);
  } catch (const CheckpointDamage& damage) {
    log_info("{}; going by the folders' names instead", damage.what());
  }
}

/// What load-checkpoint leads to; only iteration ckpt-step if that is given.
std::vector<SaveEntry> named_checkpoints(const CheckpointConfig& config) {
  std::vector<SaveEntry> list = checkpoints_of(config.load_checkpoint);
  check_usage(!list.empty(), "--load-checkpoint ", config.load_checkpoint,
              " holds no complete checkpoint; name a run folder, its checkpoints folder or one "
              "iter_ folder");
  if (config.ckpt_step < 0) return list;
  std::erase_if(list, [&](const SaveEntry& entry) { return entry.iteration != config.ckpt_step; });
  check_usage(!list.empty(), "--ckpt-step ", config.ckpt_step, ": ", config.load_checkpoint,
              " holds no complete checkpoint of that iteration");
  return list;
}

}  // namespace

std::string save_folder(const RunConfig& config) {
  const std::string& save = config.checkpoint.save;
  return save.empty() ? config.training.run_dir + "/checkpoints" : save;
}

std::vector<ConfigChange> check_same_run(const Manifest& manifest, const std::string& path,
                                         const RunIdentity& run) {
  check_usage(manifest.tokenizer_hash == run.tokenizer_hash, path,
              " was trained with another tokenizer (hash ", manifest.tokenizer_hash, ", here ",
              run.tokenizer_hash, "); give the tokenizer options of that run");
  const auto& allowed = run.config.checkpoint.allow_changed_options;
  std::vector<ConfigChange> changes = config_changes(manifest.config_ini, run.config_ini);
  std::string problems;
  for (const ConfigChange& change : changes)
    if (change.kind == ConfigChange::Kind::identity && !std::ranges::count(allowed, change.name))
      problems +=
          fmt::format("\n  {} is '{}', the checkpoint's is '{}' (--allow-changed-options {})",
                      change.name, change.now, change.before, change.name);
  check_usage(problems.empty(), path, " is of another model or other data:", problems,
              "\nGive the options of that run, or allow the changes that are meant");
  return changes;
}

int64_t continued_order(const Manifest& manifest, const std::string& path, const RunIdentity& run) {
  const TrainingConfig& training = run.config.training;
  const TrainCounters& done = manifest.counters;
  const int64_t batch = training.global_batch_size;
  const int64_t left = std::max<int64_t>(0, training.train_iters - done.step);
  const int64_t wanted = done.consumed_samples + left * batch;
  const auto& allowed = run.config.checkpoint.allow_changed_options;
  check_usage(wanted <= manifest.order_samples || std::ranges::count(allowed, "train-iters") > 0,
              "the data order of ", path, " ends after ", manifest.order_samples,
              " samples, this run is to consume ", wanted,
              "; a longer order is another one, in which samples come again or never: give "
              "--train-iters ",
              done.step + (manifest.order_samples - done.consumed_samples) / batch,
              " at most, or --allow-changed-options train-iters to take a new order from here");
  return std::max(wanted, manifest.order_samples);
}

std::string newest_readable(const RunIdentity& run) {
  const std::string save = save_folder(run.config);
  const std::vector<SaveEntry> list = list_checkpoints(save);
  check_usage(run.config.checkpoint.resume != ResumeMode::never || list.empty(), save,
              " holds checkpoints of an earlier run (the newest is of iteration ",
              list.empty() ? 0 : list.front().iteration,
              "); give another --run-dir or --save, or --resume auto to go on with it");
  for (const SaveEntry& entry : list) {
    try {
      read_checkpoint_manifest(entry.path);
      return entry.path;
    } catch (const CheckpointDamage&) {
      continue;  // told of when it is to be loaded
    }
  }
  return {};
}

std::vector<std::string> resume_candidates(const RunIdentity& run, SaveFolder* folder) {
  const CheckpointConfig& config = run.config.checkpoint;
  const std::string save = save_folder(run.config);
  std::vector<SaveEntry> list = list_checkpoints(save);
  check_usage(!list.empty() || !lost_its_checkpoints(save), save,
              " held checkpoints once, and none of them is complete now: refusing to start from "
              "scratch. Restore one, or give another --save");
  if (!list.empty() && folder != nullptr) tell_of_lost(*folder, list.front().iteration);
  if (list.empty() && !config.load_checkpoint.empty()) list = named_checkpoints(config);
  check_usage(config.resume != ResumeMode::required || !list.empty(),
              "--resume required: there is no checkpoint in ", save);
  std::vector<std::string> paths;
  for (const SaveEntry& entry : list) paths.push_back(entry.path);
  return paths;
}

}  // namespace phalanx
