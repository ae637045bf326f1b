// From which checkpoint a run goes on, when it saves, and its certificates.
#include "core/train/run_checkpoints.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "core/checkpoint/agreement.h"
#include "core/checkpoint/fault_hook.h"
#include "core/checkpoint/save_names.h"
#include "core/train/code_version.h"
#include "core/train/config_changes.h"
#include "core/train/run_setup.h"
#include "kernels/base/log.h"

namespace phalanx {
namespace {

using std::chrono::steady_clock;

constexpr double kMebibyte = 1024.0 * 1024.0;
// Between looks at whether a later start has claimed the folder.
constexpr auto kFencePause = std::chrono::seconds(5);
// Of a disk nothing is known about yet: bytes per second, and seconds for the syncs of one save.
constexpr double kSlowDisk = 100e6;
constexpr double kSlowSyncs = 1;

std::chrono::milliseconds report_after(const CheckpointConfig& config) {
  return std::chrono::seconds(config.save_report_seconds);
}

}  // namespace

RunCheckpoints::RunCheckpoints(RunIdentity run, TrainState& state, const ParameterStore& store,
                               Backend& backend)
    : run_(std::move(run)),
      state_(state),
      target_{store, state.optimizer, state.gradients, backend, *state.groups.world},
      watchdog_(fmt::format("rank {}", state.groups.world->rank()),
                report_after(run_.config.checkpoint),
                [](const std::string& text) { log_info("{}", text); }),
      fence_checked_(steady_clock::now()) {}

/// Looks at all that this start would be refused for, before the folder is claimed, because a
/// mistaken command must not end a run that is alive.
void RunCheckpoints::refuse_mistakes() {
  const std::string path = broadcast_text(target_.world, is_first() ? newest_readable(run_) : "");
  if (path.empty()) return;
  const Manifest manifest = share_manifest(path, target_.world, watchdog_);
  check_same_run(manifest, path, run_);
  continued_order(manifest, path, run_);
  check_model(path, manifest, target_, exceptions(), watchdog_);
}

LoadExceptions RunCheckpoints::exceptions() const {
  return {run_.config.checkpoint.allow_missing_tensors,
          run_.config.checkpoint.allow_unexpected_tensors};
}

void RunCheckpoints::claim() {
  const CheckpointConfig& config = run_.config.checkpoint;
  if (config.save_interval == 0) return;
  if (is_first()) folder_ = std::make_unique<SaveFolder>(save_folder(run_.config));
  saver_ = std::make_unique<CheckpointSaver>(
      SaveSource{target_.store, state_.optimizer.shards(), target_.backend, target_.world},
      SaveOptions{.config_ini = run_.config_ini,
                  .tokenizer_hash = run_.tokenizer_hash,
                  .code_version = code_version(),
                  .layout = run_.layout,
                  .order_samples = run_.order_samples,
                  .retention = {config.save_keep_last, config.save_retain_interval},
                  .report_after = report_after(config)},
      folder_.get());
}

void RunCheckpoints::say(const std::string& text) const {
  if (!is_first()) return;
  if (log_.message)
    log_.message(text);
  else
    log_info("{}", text);
}

std::vector<std::string> RunCheckpoints::agreed_candidates() {
  std::string lines;
  if (is_first())
    for (const std::string& path : resume_candidates(run_, folder_.get())) lines += path + '\n';
  lines = broadcast_text(target_.world, lines);
  std::vector<std::string> paths;
  for (size_t begin = 0; begin < lines.size();) {
    const size_t end = lines.find('\n', begin);
    paths.push_back(lines.substr(begin, end - begin));
    begin = end + 1;
  }
  return paths;
}

std::optional<ResumePoint> RunCheckpoints::resume() {
  refuse_mistakes();
  claim();
  const std::vector<std::string> paths = agreed_candidates();
  if (paths.empty()) {
    if (saver_ != nullptr)
      say(fmt::format("no checkpoint in {}: starting from scratch", save_folder(run_.config)));
    return std::nullopt;
  }
  std::string damages;
  for (const std::string& path : paths) {
    try {
      return load(path);
    } catch (const CheckpointDamage& damage) {
      damages += fmt::format("\n  {}", damage.what());
      say(fmt::format("CHECKPOINT DAMAGED, trying the one before: {}", damage.what()));
      if (!std::string_view(damage.what()).starts_with(kUnreadable)) set_aside(path);
    }
  }
  throw CheckpointDamage(
      fmt::format("none of {} checkpoint(s) is good; refusing to start from "
                  "scratch:{}",
                  paths.size(), damages));
}

void RunCheckpoints::set_aside(const std::string& path) {
  const auto slash = path.rfind('/');
  if (folder_ == nullptr || path.substr(0, slash) != folder_->path()) return;
  int64_t iteration = 0;
  for (const SaveEntry& entry : list_checkpoints(folder_->path()))
    if (entry.path == path) iteration = entry.iteration;
  folder_->set_aside_damaged(iteration);
}

ResumePoint RunCheckpoints::load(const std::string& path) {
  const Manifest manifest = open_checkpoint(path, target_.world, watchdog_);
  const std::vector<ConfigChange> changes = check_same_run(manifest, path, run_);
  const int64_t order = continued_order(manifest, path, run_);
  const LoadReport report = load_checkpoint(path, manifest, target_, exceptions(), watchdog_);
  state_.counters = manifest.counters;
  take_over(changes);
  if (saver_ != nullptr) saver_->set_order_samples(order);
  if (order != manifest.order_samples) {
    say(fmt::format("changed: the data order is a new one, made for {} samples", order));
    numbers_changed_ = true;
  }
  say(fmt::format(
      "resumed from {} (iteration {}, {} samples consumed, written by {} rank(s): {}); "
      "rank 0 read {:.1f} MiB, all took {:.2f} s",
      path, manifest.counters.step, manifest.counters.consumed_samples, manifest.world_size,
      manifest.layout, static_cast<double>(report.bytes_read) / kMebibyte, report.seconds));
  for (const std::string& name : report.missing)
    say(name + " is not in the checkpoint: it keeps its starting values");
  for (const std::string& name : report.unexpected) say(name + " of the checkpoint is left out");
  saved_step_ = manifest.counters.step;
  const bool own = folder_ != nullptr && path.starts_with(folder_->path() + "/");
  if (own) durable_step_ = saved_step_;
  expect_certificate(path);
  return {path, order};
}

/// Tells of changed options and whether the next step can be compared all the same.
void RunCheckpoints::take_over(const std::vector<ConfigChange>& changes) {
  const bool has_experts = run_.config.model.num_experts > 0;
  for (const ConfigChange& change : changes) {
    say(fmt::format("changed: {} is '{}', the checkpoint's is '{}'", change.name, change.now,
                    change.before));
    // The balance loss of experts is one of a micro-batch.
    const bool splits_losses = has_experts && change.name == "micro-batch-size";
    if (change.name.ends_with("data-path"))
      data_moved_ = true;  // its files may be the same: the batch will tell
    else if (change.kind != ConfigChange::Kind::harmless || splits_losses)
      numbers_changed_ = true;
  }
}

void RunCheckpoints::expect_certificate(const std::string& checkpoint) {
  if (state_.counters.step >= run_.config.training.train_iters) return;  // no step will come
  const std::string path = certificate_path(checkpoint);
  const bool found = is_first() && std::filesystem::exists(path);
  const bool is_there = target_.world.all_reduce(int64_t{found}, ReduceOp::max) > 0;
  const std::string text = broadcast_text(target_.world, found ? read_file(path) : "");
  if (!is_there) {
    say("resume not verified: the run that wrote the checkpoint ended before its next step");
    certify_ = true;
    return;
  }
  if (numbers_changed_) {
    say("resume not verified: the changed options give other numbers");
    return;
  }
  expected_ = parse_certificate(text, path);
  check(expected_->iteration == state_.counters.step + 1, path, " is of step ",
        expected_->iteration, ", expected ", state_.counters.step + 1,
        ": it belongs to another checkpoint; delete it to go on without a resume certificate");
}

void RunCheckpoints::after_step(const GlobalBatch& batch, const StepMetrics& metrics) {
  fault_moment("step", target_.world.rank());
  if (folder_ != nullptr && steady_clock::now() - fence_checked_ > kFencePause) {
    folder_->check_current();
    fence_checked_ = steady_clock::now();
  }
  certify(batch, metrics);
  if (saver_ == nullptr) return;
  if (const auto outcome = saver_->poll()) tell(*outcome);
  save_due_ = save_due_ || state_.counters.step % run_.config.checkpoint.save_interval == 0;
  // Not behind a skipped step: where all are skipped from now on, the weights may be ruined, and
  // checkpoints of them must not take the place of good ones.
  if (!save_due_ || metrics.skipped) return;
  save_due_ = false;
  start_save();
}

std::string RunCheckpoints::setup_text() const {
  const TrainingConfig& training = run_.config.training;
  const int64_t threads =
      training.threads > 0 ? training.threads : int64_t{std::thread::hardware_concurrency()};
  const std::string device = target_.backend.device() == Device::cpu
                                 ? fmt::format("{} thread(s), {}", threads, processor_name())
                                 : target_.backend.info().name;
  return fmt::format("{}; micro-batch {}, {}, phalanx {}, {}", run_.layout,
                     training.micro_batch_size, enum_name(training.precision), code_version(),
                     device);
}

void RunCheckpoints::compare_with_certificate(const ResumeCertificate& found) const {
  if (data_moved_ && expected_->batch_hash != found.batch_hash)
    return say("resume not verified: the data files are others than the checkpoint's, as allowed");
  const CertificateCheck result = check_certificate(
      *expected_, found, certificate_tolerance(run_.config.model, target_.store.dtype()));
  check(result.same, "the resumed run is not the one that wrote the checkpoint: ", result.text,
        ". Nothing was overwritten; delete the checkpoint's next_step.json to go on all the same");
  say(result.text);
}

void RunCheckpoints::certify(const GlobalBatch& batch, const StepMetrics& metrics) {
  if (!expected_ && !certify_) return;
  const ResumeCertificate found{.iteration = state_.counters.step,
                                .global_batch_size = run_.config.training.global_batch_size,
                                .batch_hash = batch_hash(batch, *state_.groups.dp),
                                .loss = metrics.loss,
                                .gradient_norm = metrics.gradient_norm,
                                .setup = setup_text()};
  if (expected_) {
    compare_with_certificate(found);
    expected_.reset();
  }
  if (certify_) certificate_ = found;
  certify_ = false;
  write_certificate();
}

void RunCheckpoints::write_certificate() {
  if (folder_ == nullptr || !certificate_ || durable_step_ != certificate_->iteration - 1) return;
  try {
    folder_->check_current();
    write_file(certificate_path(folder_->path() + "/" + iteration_folder(durable_step_)),
               certificate_json(*certificate_));
  } catch (const FencedError&) {
    throw;
  } catch (const Error& error) {
    say(fmt::format("the resume certificate of iteration {} could not be written: {}",
                    durable_step_, error.what()));
  }
  certificate_.reset();
}

void RunCheckpoints::start_save() {
  if (const auto outcome = saver_->finish()) tell(*outcome);  // one at a time
  const int64_t step = state_.counters.step;
  say(fmt::format("saving checkpoint at iteration {:7d} to {} in phalanx_hdf5 format", step,
                  save_folder(run_.config)));
  const auto begin = steady_clock::now();
  last_problem_ = saver_->start(state_.counters, state_.optimizer.num_steps());
  if (!last_problem_.empty()) {
    tell({.iteration = step, .problem = last_problem_});
    return;
  }
  saved_step_ = step;
  certify_ = true;
  const std::chrono::duration<double> seconds = steady_clock::now() - begin;
  say(fmt::format("snapshot taken of iteration {:7d} in {:.1f} ms: {:.1f} MiB of rank 0", step,
                  seconds.count() * 1e3,
                  static_cast<double>(saver_->snapshot_bytes()) / kMebibyte));
  if (run_.config.checkpoint.async_save) return;
  if (const auto outcome = saver_->finish()) tell(*outcome);
}

void RunCheckpoints::tell(const SaveOutcome& outcome) {
  last_problem_ = outcome.problem;
  slowest_save_ = std::max(slowest_save_, outcome.durable_seconds);
  if (log_.outcome) log_.outcome(outcome);
  if (!outcome.problem.empty()) {
    saved_step_ = -1;
    say(fmt::format("CHECKPOINT NOT SAVED at iteration {}: {}. Training goes on; {}",
                    outcome.iteration, outcome.problem,
                    durable_step_ < 0
                        ? "there is no earlier one"
                        : fmt::format("the newest good one is of iteration {}", durable_step_)));
    return;
  }
  durable_step_ = outcome.iteration;
  say(fmt::format("successfully saved checkpoint from iteration {:7d} to {}/{}", outcome.iteration,
                  save_folder(run_.config), iteration_folder(outcome.iteration)));
  say(
      fmt::format("durable: {:.1f} MiB in {:.3f} s ({:.2f} GB/s), training stood still for {:.1f} "
                  "ms; slowest writer: rank {}, {:.1f} MiB in {:.3f} s",
                  static_cast<double>(outcome.bytes) / kMebibyte, outcome.durable_seconds,
                  static_cast<double>(outcome.bytes) / outcome.durable_seconds / 1e9,
                  outcome.stall_seconds * 1e3, outcome.slowest_rank,
                  static_cast<double>(outcome.slowest_bytes) / kMebibyte, outcome.slowest_seconds));
  for (const int64_t iteration : outcome.retired)
    say(fmt::format("deleted the checkpoint of iteration {}", iteration));
  write_certificate();
}

std::string RunCheckpoints::try_save_last() {
  if (saver_ == nullptr) return {};
  if (const auto outcome = saver_->finish()) tell(*outcome);
  if (saved_step_ == state_.counters.step || state_.counters.step == 0) return {};
  start_save();
  if (const auto outcome = saver_->finish()) tell(*outcome);
  return last_problem_.empty() ? "" : "the last checkpoint could not be saved: " + last_problem_;
}

std::string RunCheckpoints::save_doubtful() {
  if (saver_ == nullptr) return {};
  if (const auto outcome = saver_->finish()) tell(*outcome);
  saver_->keep_all();
  return try_save_last();
}

void RunCheckpoints::save_last() {
  const std::string problem = try_save_last();
  check(problem.empty(), problem);
}

double RunCheckpoints::seconds_to_save() const {
  if (saver_ == nullptr) return 0;
  if (slowest_save_ > 0) return 2 * slowest_save_;
  return kSlowSyncs + static_cast<double>(saver_->snapshot_bytes()) / kSlowDisk;
}

}  // namespace phalanx
