// RunCheckpoints: the checkpoints of one run - from which it goes on, when it is saved, and the
// proof that it went on as it would have.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "core/checkpoint/checkpoint_loader.h"
#include "core/checkpoint/checkpoint_saver.h"
#include "core/config.h"
#include "core/train/resume_candidates.h"
#include "core/train/resume_certificate.h"
#include "core/train/train_state.h"

namespace phalanx {

/// What a run that goes on takes over.
struct ResumePoint {
  std::string checkpoint;     // folder
  int64_t order_samples = 0;  // that the data order is to be made for
};

/// What is said about a run's checkpoints, on rank 0; nothing elsewhere.
struct CheckpointLog {
  std::function<void(const std::string& text)> message;
  std::function<void(const SaveOutcome& outcome)> outcome;  // of every save, once it is known
};

/// Owned by the trainer of every rank. Methods are collective over the world and for one thread.
class RunCheckpoints {
 public:
  /// Borrows the state's owners.
  RunCheckpoints(RunIdentity run, TrainState& state, const ParameterStore& store, Backend& backend);

  /// Refuses what cannot go on with the checkpoints that are there. Then claims the save folder, so
  /// that an earlier start of this run that still lives can do nothing more there, and makes room
  /// for saving. Then loads the newest good checkpoint of the save folder, or of load-checkpoint
  /// while that has none, and sets the counters. Damaged ones are named, moved aside (in the save
  /// folder) and passed over. Nothing if there is none and that is allowed: a fresh start, and the
  /// log says so. Throws UsageError if the configuration contradicts the checkpoint,
  /// CheckpointDamage if checkpoints are there but none is good.
  std::optional<ResumePoint> resume();
  /// From now on: where to say things.
  void set_log(CheckpointLog log) { log_ = std::move(log); }

  /// After every step, with the batch it ran: checks or writes resume certificates, tells of saves
  /// that are done, and starts one if it is due: at a multiple of the interval, or at the first
  /// step behind it that was not skipped. Throws if the first step after a resume differs from its
  /// certificate.
  void after_step(const GlobalBatch& batch, const StepMetrics& metrics);
  /// At the end: saves this step unless that was done, and waits until it is durable. Throws if it
  /// cannot be saved.
  void save_last();
  /// The same for a run that went wrong: older checkpoints stay, because this one may be no good,
  /// and why it could not be saved is returned, on all ranks alike; empty: it was.
  std::string save_doubtful();
  /// Seconds that `save_last` should be given, from the saves so far.
  double seconds_to_save() const;

 private:
  void refuse_mistakes();
  LoadExceptions exceptions() const;
  void claim();
  void take_over(const std::vector<ConfigChange>& changes);
  std::vector<std::string> agreed_candidates();
  ResumePoint load(const std::string& path);
  void set_aside(const std::string& path);
  void expect_certificate(const std::string& checkpoint);
  std::string setup_text() const;
  void compare_with_certificate(const ResumeCertificate& found) const;
  void certify(const GlobalBatch& batch, const StepMetrics& metrics);
  void write_certificate();
  void start_save();
  void tell(const SaveOutcome& outcome);
  std::string try_save_last();
  bool is_first() const { return target_.world.rank() == 0; }
  void say(const std::string& text) const;

  RunIdentity run_;
  TrainState& state_;
  LoadTarget target_;
  std::unique_ptr<SaveFolder> folder_;  // rank 0
  IoWatchdog watchdog_;
  std::unique_ptr<CheckpointSaver> saver_;  // absent without an interval
  CheckpointLog log_;

  bool numbers_changed_ = false;               // by options, since the checkpoint
  bool data_moved_ = false;                    // data files have other names than the checkpoint\'s
  std::optional<ResumeCertificate> expected_;  // of the next step
  bool certify_ = false;                       // the next step is one after a checkpoint
  std::optional<ResumeCertificate> certificate_;  // not yet written
  bool save_due_ = false;
  int64_t saved_step_ = -1;    // the last one that is durable or in flight
  int64_t durable_step_ = -1;  // the last one that is in the save folder (rank 0)
  std::string last_problem_;   // of the last save; empty: it went well
  double slowest_save_ = 0;
  std::chrono::steady_clock::time_point fence_checked_;
};

}  // namespace phalanx
